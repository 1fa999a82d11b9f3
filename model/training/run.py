"""Run: a whole training, from a config to a folder with checkpoints and lines of progress."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.checkpoints import Record, load_checkpoint
from model.encoders import Encoder
from model.errors import BadInput
from model.families import names, profile_for
from model.heads import Projector, projector_memory
from model.losses.reduce import rank, ranks, row_counts
from model.order import share_of
from model.profile import Profile
from model.qat import FakeQuantise
from model.shards import Manifest, ShardSet, open_shards
from model.training import checkpoint, rotate
from model.training.branches import Branches, Objective
from model.training.config import Config
from model.training.device import Device, check_memory, device_of, prepare, ranks_of_environment
from model.training.distil import Student, teacher_of
from model.training.feed import Draw, pairs, seen, taught
from model.training.loop import STOPPED, Trained, digest_of, on_device, prepared, train
from model.training.progress import Progress
from model.training.schedule import position, steps_of
from model.training.statistics import own_statistics
from model.views import ViewRule, two_views

LAST, UNTRAINED, ROTATED = "last.pt", "untrained.pt", "rotated.pt"
IMAGERY = (
    *("s2_bands", "s1_bands", "scl_invalid", "s2_resampling", "day_rule", "s2_order", "s1_order", "offset_rule"),
    *("s1_scaling", "s1_arithmetic", "s1_resampling"),
)  # fields of a profile that make the pixels of a shard
ROTATION_RECORDS, AT_ONCE = 1 << 15, 1 << 10


def run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains, or goes on with a training that `out` holds. Under torchrun every rank calls it.

    Args:
      out: folder of this training: `last.pt`, `untrained.pt` (the encoder before its first step), progress.
      resume: whether a `last.pt` is gone on from; otherwise it is written over.
      say: for lines to people, of rank 0 alone.
      stop: asked behind every step whether to save and end; of a process by itself, for ranks must end together.

    Returns:
      what became of it: `checkpoint`, `step`, `steps`, `complete`, `records`, `device`, `last` (the last line).

    Raises:
      BadInput: a device, precision or memory that is not there, a shard set that is damaged or does not suit the
        encoder or its teacher, a `last.pt` that is damaged or of another training.
      loop.Stopped: the loss is not finite any more.
    """
    with ranks_of_environment(config.run) as local:
        return _run(config, Path(out), resume, say if rank() == 0 else lambda line: None, stop, local)


def _run(
    config: Config,
    out: Path,
    resume: bool,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    local: int,
) -> dict[str, Any]:
    device = device_of(config.run, config.optimiser.precision, local)
    prepare(config.run, device)
    if config.run.rotate:
        rotate.check_rotatable(config.encoder.sizes)
    shards = open_shards(config.data.shards, check=config.data.check and rank() == 0)
    batch, steps = config.data.batch, steps_of(config.schedule, len(shards), config.data.batch)
    own = share_of(batch, rank(), ranks())
    profile = profile_of(config, shards)
    built = build(config, profile, steps)
    if isinstance(built.objective, Student):
        check_pixels(shards, built.objective.teacher_profile, "[distil] teacher")
    if not config.distil.teacher:
        said = _memory(config, own.stop - own.start, device)
        say(said)
    trained = prepared(built.objective, config, device)
    make_folder(out)
    start, teacher = 0, built.teacher
    if not resume and rank() == 0:
        for name in (LAST, ROTATED, STOPPED):  # or a run that is killed early would be gone on with from the old one
            (out / name).unlink(missing_ok=True)
    if resume and (out / LAST).exists():
        start = _go_on(out / LAST, trained, built, config, shards, steps)
        say(f"goes on from {out / LAST}: {start:,} of {steps:,} steps are done")
    if len(set(row_counts(start, device.device))) > 1:
        raise BadInput(
            f"--out {out}: ranks find different checkpoints there; it must be one folder that all of them see"
        )
    record = Record(config.encoder.name, profile, training_of(config, shards, teacher, device))

    def save(step: int, name: str) -> None:
        if rank() == 0:
            checkpoint.write(out / name, _content(trained, built, config, record, shards, step))

    if rank() == 0 and not start:
        checkpoint.write(
            out / UNTRAINED,
            checkpoint.payload_of(
                built.encoder.state_dict(),
                config.encoder.sizes,
                dataclasses.replace(record, name=f"{record.name}-untrained", training={**record.training, "steps": 0}),
                (),
                None,
            ),
        )
    progress = Progress(out, start, config.run.tensorboard, say) if rank() == 0 else None
    try:
        left = range(start, steps)
        outcome = train(trained, shards, built.draw, config, device, left, save, progress, stop)
    finally:
        if progress:
            progress.close()
    if outcome.complete and config.run.rotate and rank() == 0:
        _rotate(out / ROTATED, built.encoder, config, record, shards, steps, device)
    return {
        "checkpoint": str(out / LAST),
        "out": str(out),
        "step": outcome.step,
        "steps": steps,
        "complete": outcome.complete,
        "records": len(shards),
        "device": device.kind,
        "rank": rank(),
        "ranks": ranks(),
        "last": outcome.last,
    }


@dataclasses.dataclass(frozen=True)
class Built:
    """The parts of a training before its first step.

    Attributes:
      encoder: that is trained. objective: the module around it.
      draw: of its views. teacher: sha256 of the teacher's file; "" for none. prefixes: that it is trained to be cut at.
    """

    encoder: Encoder
    objective: Objective
    draw: Draw
    teacher: str
    prefixes: tuple[int, ...]


def build(config: Config, profile: Profile, steps: int) -> Built:
    """Encoder and what stands on it, weights from the config's seed: the same on every rank.

    Raises:
      BadInput: a teacher that cannot be read, or that is another file than the config says.
    """
    sizes, dropout, seed = config.encoder.sizes, config.encoder.dropout, config.run.seed
    start = config.qat.first_step(steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(sizes, profile).train()
        if config.encoder.pooling == "mean":
            _hold_queries(encoder)
        if not config.distil.teacher:
            branches = Branches(
                encoder,
                Projector((sizes.native_dims, *config.projector.widths)),
                FakeQuantise(start, profile=profile),
                config.loss.barlow_rule,
                config.loss.mix_rule,
                config.loss.split,
                dropout,
            )
            return Built(encoder, branches, pairs(config.views, seed), "", ())
        known = load_checkpoint(config.distil.teacher, config.distil.teacher_family or None)
        wanted = config.distil.teacher_sha256
        if wanted and known.file_sha256 != wanted:
            raise BadInput(f"{config.distil.teacher}: sha256 {known.file_sha256}, [distil] teacher-sha256 is {wanted}")
        quantiser = FakeQuantise(start, config.distil.prefixes, profile)
        student = Student(encoder, teacher_of(known, config.distil.teacher_family), quantiser, dropout)
    draw = taught(config.views, ViewRule(config.distil.s2_length, config.distil.s1_length), seed)
    return Built(encoder, student, draw, known.file_sha256, config.distil.prefixes)


def _hold_queries(encoder: Encoder) -> None:
    """A query of zeros gives all tokens one weight: attention pooling becomes the mean, in an ordinary file."""
    for backbone in (encoder.s2_backbone, encoder.s1_backbone):
        query = backbone.attn_pool.query
        nn.init.zeros_(query.weight)
        nn.init.zeros_(query.bias)
        query.requires_grad_(False)


def profile_of(config: Config, shards: ShardSet) -> Profile:
    """The contract of the model that comes of it: the family's, with the sources and, where asked, statistics it saw.

    Raises:
      BadInput: pixels that were made by other rules than the family's.
    """
    profile, made = config.encoder.profile, shards.manifest
    check_pixels(shards, profile, f"[encoder] family {config.encoder.family}")
    optical = tuple(s for s in made.sources if s.startswith("sentinel-2"))
    radar = tuple(s for s in made.sources if s not in optical)
    if optical and not set(optical) <= set(profile.s2_sources):
        profile = dataclasses.replace(profile, s2_sources=optical)
    if radar and not set(radar) <= set(profile.s1_sources):
        profile = dataclasses.replace(profile, s1_sources=radar)
    return own_statistics(shards, profile, config.run.seed) if config.encoder.statistics == "shards" else profile


def check_pixels(shards: ShardSet, profile: Profile, whose: str) -> None:
    """Raises BadInput where the pixels of a known family's shards were made by other rules than a profile's."""
    made = shards.manifest.profile
    if made not in names():
        return
    theirs = profile_for(made, profile.native_dims)
    if differ := [f for f in IMAGERY if getattr(theirs, f) != getattr(profile, f)]:
        raise BadInput(
            f"{shards.folder}: its pixels were made for {made}, whose {', '.join(differ)} are not those of {whose}: "
            "make shards for that family"
        )


def training_of(config: Config, shards: ShardSet, teacher: str, device: Device) -> dict[str, Any]:
    """What the model's record says of how it came to be; neither places on a disk nor clocks."""
    return {
        "config": config.fixed(),
        "config_sha256": config.digest,
        "shards": {"sha256": digest_of(shards), "records": len(shards), **_facts(shards.manifest)},
        **({"teacher_sha256": teacher} if teacher else {}),
        "steps": steps_of(config.schedule, len(shards), config.data.batch),
        "device": device.kind,
        "ranks": ranks(),
        "torch": torch.__version__.partition("+")[0],
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    """What a model's user must know of the records: where from, what was kept out."""
    fields = dataclasses.asdict(manifest)
    return {name: value for name, value in fields.items() if name not in ("shards", "shard_records", "failed")}


def make_folder(out: Path) -> None:
    """Raises BadInput where no folder can be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"--out {out}: {e.strerror or e}") from None


def _memory(config: Config, rows: int, device: Device) -> str:
    """The memory sum of the projector, in words.

    Raises:
      BadInput: more than the device has.
    """
    widths = (config.encoder.native_dims, *config.projector.widths)
    memory = projector_memory(
        widths,
        rows,
        mixed=config.loss.mix_rule is not None,
        half=device.precision != "fp32",
        ranks=ranks(),
        split=config.loss.split,
    )
    check_memory(memory, device)
    parts = {f.name: getattr(memory, f.name) / 2**20 for f in dataclasses.fields(memory) if f.name != "parameters"}
    said = ", ".join(f"{name} {mib:,.0f}" for name, mib in parts.items() if mib >= 0.5)
    return (
        f"projector {' x '.join(map(str, widths))}: {memory.parameters:,} parameters, {memory.total / 2**20:,.0f} MiB "
        f"of each rank's memory beside the encoder's (MiB: {said})"
    )


def _content(
    trained: Trained, built: Built, config: Config, record: Record, shards: ShardSet, step: int
) -> dict[str, Any]:
    """A checkpoint in front of a step."""
    epoch, seen_of_it = position(step, len(shards), config.data.batch)
    above = {n: t.detach().cpu() for n, t in trained.objective.state_dict().items() if not n.startswith("encoder.")}
    state = checkpoint.State(
        step=step,
        epoch=epoch,
        seen=seen_of_it,
        config=config.fixed(),
        shards=digest_of(shards),
        teacher=built.teacher,
        modules=above,
        optimiser=trained.optimiser.state_dict(),
        scaler=trained.scaler.state_dict(),
    )
    record = dataclasses.replace(record, training={**record.training, "steps": step})
    weights = built.encoder.state_dict()
    return checkpoint.payload_of(weights, config.encoder.sizes, record, built.prefixes, state)


def _go_on(path: Path, trained: Trained, built: Built, config: Config, shards: ShardSet, steps: int) -> int:
    """Puts a checkpoint's state into what is trained; the step to go on with.

    Raises:
      BadInput: damaged, or of another training.
    """
    tensors, state = checkpoint.read(path)
    checkpoint.check_same(path, state, config.fixed(), digest_of(shards), built.teacher)
    weights = {f"encoder.{name}": torch.from_numpy(np.array(t)) for name, t in tensors.items()}
    try:
        trained.objective.load_state_dict({**weights, **state.modules})
        trained.optimiser.load_state_dict(state.optimiser)
        trained.scaler.load_state_dict(state.scaler)
    except (RuntimeError, ValueError, KeyError) as e:
        raise BadInput(f"{path}: its state does not fit this training: {str(e).splitlines()[0]}") from None
    return min(state.step, steps)


def _rotate(
    path: Path, encoder: Encoder, config: Config, record: Record, shards: ShardSet, steps: int, device: Device
) -> None:
    """Writes the encoder whose values stand in the order of their variance over the shard set's records."""
    tensors = checkpoint.as_tensors(encoder.state_dict())
    turned = rotate.rotated(tensors, encoder.sizes, rotate.rotation_of(_embedded(encoder, config, shards, device)))
    content = checkpoint.payload_of(
        {name: torch.from_numpy(t) for name, t in turned.items()},
        encoder.sizes,
        dataclasses.replace(
            record, name=f"{record.name}-rotated", training={**record.training, "steps": steps, "rotated": True}
        ),
        (),
        None,
    )
    checkpoint.write(path, content)


@torch.no_grad()
def _embedded(encoder: Encoder, config: Config, shards: ShardSet, device: Device) -> Iterator[NDArray[np.floating]]:
    """Embeddings of some records, each of one draw of its observations."""
    encoder.eval()
    last = min(ROTATION_RECORDS, len(shards))
    for first in range(0, last, AT_ONCE):
        batch = shards.take(np.arange(first, min(first + AT_ONCE, last)))
        view = two_views(batch.s2_valid, batch.s1_valid, batch.index, config.views, config.run.seed, 0, 0)[0]
        inputs = on_device(seen(batch, view), device.device)
        yield encoder.embed_tokens(*encoder.raw_tokens(*inputs)).cpu().numpy()
    encoder.train()
