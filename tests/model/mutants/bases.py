"""Bases: the sound files that mutants are made from, and what a mutant is."""

import dataclasses
import json
from collections.abc import Callable

from onnx import ModelProto, TensorProto, numpy_helper
from small_encoders import SMALL, family_of_case, tensors_of

from model import modelfile
from model.families import profile_for
from model.profile import Profile
from model.weights import EncoderSizes, Tensors, tensor_shapes, weights_sha256
from mutants.tools import records, settle, write

TRAINED, RETRAINED = 2, 3  # seeds of the file's weights, and of weights that it was not made from


@dataclasses.dataclass(frozen=True)
class Base:
    """A sound model file that mutants are made from.

    Attributes:
      case: of `small_encoders.SMALL`.
      dims: values that are stored; None for the family's own rule.
      precision, target: of the export.
    """

    case: str
    dims: int | None = None
    precision: str = "fp32"
    target: str = "any"

    @property
    def family(self) -> str:
        return family_of_case(self.case)

    @property
    def sizes(self) -> EncoderSizes:
        return SMALL[self.case]

    @property
    def profile(self) -> Profile:
        return profile_for(self.family, self.sizes.native_dims, self.dims)

    def tensors(self, seed: int = TRAINED) -> Tensors:
        return tensors_of(self.sizes, seed)


BASES = {
    "v1.0-early": Base("v1.0-early"),
    "v1.0-qat": Base("v1.0-qat"),
    "v1.1-mpc": Base("v1.1-mpc", 7),
    "v1.1-mpc GRU": Base("v1.1-mpc", 7, target="cpu"),
    "v1.1-mpc fp16": Base("v1.1-mpc", 7, "fp16"),
    "v1.1-mpc int8": Base("v1.1-mpc", 7, "int8", "cpu"),
    "v1.1-aws": Base("v1.1-aws", 10),
    "v2": Base("v2", 10),
    "v2 fp16": Base("v2", 10, "fp16"),
    "v2 int8": Base("v2", None, "int8", "cpu"),
    "v2 with QK-norm": Base("v2 with QK-norm"),
}
OTHER_SOURCE = {"v1.1-mpc": "v1.1-aws", "v1.1-aws": "v1.1-mpc"}


@dataclasses.dataclass(frozen=True)
class Context:
    """What a mutator may want to know of its file: what it was made from, and the file of other weights."""

    base: Base
    other: Callable[[], ModelProto]

    @property
    def sizes(self) -> EncoderSizes:
        return self.base.sizes

    @property
    def other_profile(self) -> Profile:
        """The same family's for the other source."""
        return profile_for(OTHER_SOURCE[self.base.family], self.sizes.native_dims, self.base.profile.dims)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A mutator and the file that it is tried on.

    Attributes:
      change: the mutator.
      base: key of `BASES`.
      alike: whether the file gives what it gave before: then the digest alone has to know.
      unseen: whether nothing but the checkpoint can tell, once the digests are made good again.
      by: checks of the gate that must find it.
      usual: whether it is tried in every run; the others are slow tests.
    """

    change: Callable[[ModelProto, Context], None]
    base: str
    alike: bool = False
    unseen: bool = False
    by: frozenset[str] = frozenset()
    usual: bool = True

    @property
    def name(self) -> str:
        return self.change.__name__

    @property
    def stands_for(self) -> str:
        return (self.change.__doc__ or "").strip()


MUTANTS: list[Mutant] = []


def mutant(*bases: str, alike: bool = False, unseen: bool = False, by: tuple[str, ...] = (), seldom: bool = False):
    """Registers a mutator for each of the files that it is tried on.

    Args:
      alike, unseen, by: as in `Mutant`.
      seldom: whether none of its files is usual, for it is much like another mutator. Of the others one is for every
        second one, and it goes round, and for each that is the first to fail a check.
    """

    def register(change):
        before = {m.name for m in MUTANTS} - {change.__name__}
        first = not {check for m in MUTANTS if m.usual for check in m.by}.issuperset(by)
        usual = None if seldom or not (first or len(before) % 2) else bases[len(before) % len(bases)]
        MUTANTS.extend(Mutant(change, base, alike, unseen, frozenset(by), base == usual) for base in bases)
        return change

    return register


def mutate(proto: ModelProto, mutant: Mutant, context: Context) -> ModelProto:
    """A changed copy, its nodes in an order that can be run."""
    changed = ModelProto()
    changed.CopyFrom(proto)
    mutant.change(changed, context)
    settle(changed)
    return changed


def resigned(proto: ModelProto, before: ModelProto, sizes: EncoderSizes) -> ModelProto:
    """A copy in which every digest fits again, as a tool would leave it that edits files and keeps their books.

    Where the float32 weights changed, their sha256 and the name that is made of it are made anew; golden outputs and
    the parity report cannot be, for that takes PyTorch and the checkpoint.
    """
    signed = ModelProto()
    signed.CopyFrom(proto)
    old, new = (weights_of(p, sizes) for p in (before, proto))
    if old is not None and new is not None and old != new:
        write(signed, weights_sha256=new, name=records(signed)["name"].replace(old[:8], new[:8]))
    if not any(t.data_location == TensorProto.EXTERNAL for t in signed.graph.initializer):
        version = json.loads(records(signed)["tessera_beam"])["version"]
        write(signed, graph_digest=modelfile.graph_digest(signed, version))
    if "records_digest" in records(signed):
        write(signed, records_digest=modelfile.records_digest(records(signed)))
    return signed


def weights_of(proto: ModelProto, sizes: EncoderSizes) -> str | None:
    """sha256 of the weights as a float32 file holds them; None where they cannot be read as such."""
    held = {t.name: t for t in proto.graph.initializer}
    names = tensor_shapes(sizes)
    if any(n not in held or held[n].data_type != TensorProto.FLOAT or not held[n].HasField("raw_data") for n in names):
        return None
    return weights_sha256({n: numpy_helper.to_array(held[n]) for n in names})
