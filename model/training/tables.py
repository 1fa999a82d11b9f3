"""Tables: what each table of a training's config holds, and which values can be."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from model.errors import BadInput
from model.families import PREFIXES, family_of, names, profile_for
from model.layouts import LAYOUTS, MLP
from model.losses.variants import BARLOW, MIX, BarlowRule, MixRule
from model.profile import Profile
from model.weights import ATTENTION, EncoderSizes

FREE: Mapping[str, bool] = {"free": True}  # of a field that a run may go on with in another form
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
ORDERS = ("shuffled", "stored")
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Data:
    """[data]: what is trained on.

    Attributes:
      shards: folder of the shard set. Free: a set that was moved is known by its digest.
      batch: records of a step, of all ranks together.
      order: "shuffled": another permutation of all records in every epoch; "stored": as they stand in the shards, which
        `train shards` has shuffled once: a disk then reads them one behind the other.
      check: whether every byte is held against the manifest's checksums before the start. Sizes always are. Free.
    """

    shards: str = dataclasses.field(metadata=FREE)
    batch: int = 256
    order: str = "shuffled"
    check: bool = dataclasses.field(default=True, metadata=FREE)

    def __post_init__(self) -> None:
        _at_least(2, "[data] batch", self.batch)
        _one_of("[data] order", self.order, ORDERS)

    @property
    def stored(self) -> bool:
        return self.order == "stored"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """[encoder]: what is trained.

    Attributes:
      family: of `families.FAMILIES`: profile, pooling, reducer and layout of the checkpoint.
      name: what the model is called; model files are `<name>-<weights>`.
      width, layers, heads, feed_forward: of both backbones.
      hidden: width inside the reducer; 0 in families whose reducer is one linear layer.
      native_dims: values of an embedding. stored_dims: how many of them are stored; 0 for the family's own rule.
      qk_norm: RMSNorm of queries and keys, of family v2 alone.
      pooling: "family", or "mean" where the family's is attention: its query is held at zero, so every token weighs
        the same, and the file is an ordinary one.
      dropout: share of the reducer's hidden values that a training drops; 0.2 in every published v1.1 and v2.
      statistics: what inputs are standardised by: "family", or "shards" for the shard set's own, which the profile of
        the model then has.
      notes: a sentence for the profile, which every model file carries.
    """

    family: str = "v2"
    name: str = "own"
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 1024
    hidden: int = 512
    native_dims: int = 128
    stored_dims: int = 0
    qk_norm: bool = False
    pooling: str = "family"
    dropout: float = 0.2
    statistics: str = "family"
    notes: str = ""

    def __post_init__(self) -> None:
        layout = LAYOUTS[family_of(self.family)[0]]
        _one_of("[encoder] pooling", self.pooling, ("family", "mean"))
        _one_of("[encoder] statistics", self.statistics, ("family", "shards"))
        _share("[encoder] dropout", self.dropout, below=True)
        if self.pooling == "mean" and layout.form.pooling != ATTENTION:
            raise BadInput(f"[encoder] pooling mean: family {self.family} has a GRU; v2 has attention alone")
        if (layout.form.reducer == MLP) != bool(self.hidden):
            raise BadInput(
                f"[encoder] hidden = {self.hidden}: the reducer of family {self.family} has "
                + ("a hidden layer, give its width" if layout.form.reducer == MLP else "none, give 0")
            )
        if self.qk_norm and not layout.form.qk_norm:
            raise BadInput(f"[encoder] qk-norm: family {self.family} has none; v2 may")
        if self.name in names():
            raise BadInput(f"[encoder] name = {self.name!r}: that is what published weights are called; give another")
        if not 0 <= self.stored_dims <= self.native_dims:
            raise BadInput(f"[encoder] stored-dims = {self.stored_dims}: it must lie in 0..{self.native_dims}")
        _ = self.sizes, self.profile

    @property
    def sizes(self) -> EncoderSizes:
        """What is built; pooling and output norm are the family's."""
        layout = LAYOUTS[family_of(self.family)[0]]
        return EncoderSizes(
            *(self.width, self.layers, self.heads, self.feed_forward, self.hidden, self.native_dims, self.qk_norm),
            pooling=layout.form.pooling,
            output_norm=layout.output_norm,
        )

    @property
    def profile(self) -> Profile:
        """The family's contract under the model's own name, with the family's statistics."""
        own = profile_for(self.family, self.native_dims, self.stored_dims or None)
        notes = " ".join(text for text in (self.notes, own.notes) if text)
        return dataclasses.replace(own, name=self.name, notes=notes)


@dataclasses.dataclass(frozen=True)
class Loss:
    """[loss]: Barlow Twins with the mix regulariser; `model/losses/variants.py` has the forms with their reasons.

    Attributes:
      barlow: of `variants.BARLOW`. weight: lambda in its place; 0 for the form's own.
      mix: of `variants.MIX`, or "none". mix_weight: in place of the form's own; 0 for that.
      alpha, beta: shares of the first view are drawn from Beta(alpha, beta).
      split: each rank makes a part of the correlation; less memory for wide projectors.
    """

    barlow: str = "standard"
    weight: float = 0.0
    mix: str = "readme"
    mix_weight: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    split: bool = False

    def __post_init__(self) -> None:
        _one_of("[loss] barlow", self.barlow, tuple(BARLOW))
        _one_of("[loss] mix", self.mix, (NONE, *MIX))
        for name in ("weight", "mix_weight"):
            _number(f"[loss] {hyphened(name)}", getattr(self, name))
        for name in ("alpha", "beta"):
            _above_zero(f"[loss] {name}", getattr(self, name))

    @property
    def barlow_rule(self) -> BarlowRule:
        own = BARLOW[self.barlow]
        return dataclasses.replace(own, weight=self.weight) if self.weight else own

    @property
    def mix_rule(self) -> MixRule | None:
        if self.mix == NONE:
            return None
        own = MIX[self.mix]
        return dataclasses.replace(own, weight=self.mix_weight) if self.mix_weight else own


@dataclasses.dataclass(frozen=True)
class Projector:
    """[projector]: what stands on the encoder in training alone.

    Attributes:
      widths: of the output of every layer.
    """

    widths: tuple[int, ...] = (2048, 2048, 2048)

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise BadInput(f"[projector] widths = {list(self.widths)}: one layer at least, each above 0")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """[optimiser]: AdamW.

    Attributes:
      rate: the highest learning rate, on the schedule's plateau.
      weight_decay: of matrices alone; biases and norms have none.
      beta1, beta2, epsilon: AdamW's.
      clip: longest gradient of all parameters together; 0 for no limit.
      precision: "fp32", or "bf16" or "fp16" for the matrix products, where the device has them; norms, batch
        statistics, correlations and losses stay float32.
    """

    rate: float = 2e-3
    weight_decay: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 2.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _one_of("[optimiser] precision", self.precision, PRECISIONS)
        for name in ("rate", "epsilon"):
            _above_zero(f"[optimiser] {name}", getattr(self, name))
        for name in ("weight_decay", "clip"):
            _number(f"[optimiser] {hyphened(name)}", getattr(self, name))
        for name in ("beta1", "beta2"):
            _share(f"[optimiser] {name}", getattr(self, name), below=True)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """[schedule]: how long, and the learning rate on the way: up, level, down along half a cosine.

    Attributes:
      steps: of the training; or epochs: passes over all records. Exactly one of them is given.
      warmup, plateau: shares of all steps; what is left is the way down.
      floor: the rate at the end, as a share of the highest.
    """

    steps: int = 0
    epochs: float = 0.0
    warmup: float = 0.1
    plateau: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        _at_least(0, "[schedule] steps", self.steps)
        _number("[schedule] epochs", self.epochs)
        if bool(self.steps) == bool(self.epochs):
            raise BadInput(f"[schedule] steps = {self.steps} and epochs = {self.epochs:g}: give one of them, above 0")
        for name in ("warmup", "plateau", "floor"):
            _share(f"[schedule] {name}", getattr(self, name))
        if self.warmup + self.plateau > 1:
            raise BadInput(f"[schedule] warmup {self.warmup} and plateau {self.plateau}: shares of all steps, up to 1")


@dataclasses.dataclass(frozen=True)
class Qat:
    """[qat]: the deployed quantiser in the training.

    Attributes:
      start: the share of all steps after which it is active: 0 from the first one on, 1 never.
      step: the first step at which it is, counted from 0, in place of the share; -1 for the share.
    """

    start: float = 1.0
    step: int = -1

    def __post_init__(self) -> None:
        _share("[qat] start", self.start)
        _at_least(-1, "[qat] step", self.step)

    def first_step(self, steps: int) -> int | None:
        """The first of so many steps at which the quantiser is active; None for never."""
        if self.step >= 0:
            return self.step
        return None if self.start == 1 else round(self.start * steps)


@dataclasses.dataclass(frozen=True)
class Distil:
    """[distil]: a student of a frozen teacher, in place of the self-supervised losses.

    Attributes:
      teacher: checkpoint, ours or published; "" for no distillation. teacher_family: of one that does not say.
      teacher_sha256: of the file, where it must be a certain one.
      s2_length, s1_length: rows of the view that the teacher sees.
      prefixes: lengths at which the student may be cut; each has a linear head that gives the whole teacher.
    """

    teacher: str = dataclasses.field(default="", metadata=FREE)
    teacher_family: str = ""
    teacher_sha256: str = ""
    s2_length: int = 40
    s1_length: int = 40
    prefixes: tuple[int, ...] = PREFIXES

    def __post_init__(self) -> None:
        _at_least(1, "[distil] s2-length", self.s2_length)
        _at_least(1, "[distil] s1-length", self.s1_length)
        if not self.prefixes or self.prefixes[0] < 1 or list(self.prefixes) != sorted(set(self.prefixes)):
            raise BadInput(f"[distil] prefixes = {list(self.prefixes)}: one at least, ascending and above 0")


@dataclasses.dataclass(frozen=True)
class Run:
    """[run]: how it is carried out. All of it but the seed is free: a run may be gone on with in another way.

    Attributes:
      seed: of weights, order, views, mixing and dropout. The same seed on the same kind of device: the same bits.
      device: "auto", "cpu" or "cuda".
      micro_batch: rows of a rank that pass the encoder at once; 0 for all. The same gradients with less memory, for
        another pass through the encoder.
      threads: of the CPU; 0 for PyTorch's own number.
      deterministic: on CUDA, kernels that give the same bits again; some are slower.
      save_every, log_every: steps between two checkpoints and between two lines of progress.
      ahead: batches that are made ready while one is trained on.
      tensorboard: whether there are TensorBoard logs beside the lines.
      rotate: whether the end leaves `rotated.pt` too, with its values in the order of their variance (PCA); for
        families without an output norm.
    """

    seed: int = 0
    device: str = dataclasses.field(default="auto", metadata=FREE)
    micro_batch: int = dataclasses.field(default=0, metadata=FREE)
    threads: int = dataclasses.field(default=0, metadata=FREE)
    deterministic: bool = dataclasses.field(default=True, metadata=FREE)
    save_every: int = dataclasses.field(default=1000, metadata=FREE)
    log_every: int = dataclasses.field(default=50, metadata=FREE)
    ahead: int = dataclasses.field(default=1, metadata=FREE)
    tensorboard: bool = dataclasses.field(default=False, metadata=FREE)
    rotate: bool = dataclasses.field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        _one_of("[run] device", self.device, DEVICES)
        if not -(2**63) <= self.seed < 2**63:
            raise BadInput(f"[run] seed = {self.seed}: it must fit into 64 bits")
        for name, least in (("micro_batch", 0), ("threads", 0), ("save_every", 1), ("log_every", 1), ("ahead", 0)):
            _at_least(least, f"[run] {hyphened(name)}", getattr(self, name))


def hyphened(name: str) -> str:
    """A field's name as files write it."""
    return name.replace("_", "-")


def _number(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise BadInput(f"{what} = {value}: it must be 0 or more")


def _above_zero(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{what} = {value}: it must be above 0")


def _at_least(least: int, what: str, value: int) -> None:
    if value < least:
        raise BadInput(f"{what} = {value}: it must be {least} or more")


def _share(what: str, value: float, below: bool = False) -> None:
    if not (0 <= value <= 1) or (below and value == 1):
        raise BadInput(f"{what} = {value}: it must lie in 0..1" + (", 1 left out" if below else ""))


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise BadInput(f"{what} = {value!r}: it must be one of {', '.join(known)}")
