"""Mutants made before the export: a file that is sound in itself, of weights that are not the checkpoint's.

Golden outputs, parity report and digests are made from the changed weights, so the checkpoint alone can tell.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from model.weights import EncoderSizes, Tensors, layer_name
from mutants.bases import RETRAINED, Base

Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Remade:
    """What is done to weights and sizes, and the file that it is done for.

    Attributes:
      change: gives the tensors and sizes that are exported in place of the checkpoint's.
      base: key of `bases.BASES`.
      old_digest: whether the records go on naming the checkpoint's weights; a file that is not float32 inside cannot
        be held against that.
      by, usual: as in `bases.Mutant`.
    """

    change: Callable[[Weights, Base], tuple[Tensors, EncoderSizes]]
    base: str
    old_digest: bool = False
    by: frozenset[str] = frozenset()
    usual: bool = True

    @property
    def name(self) -> str:
        return self.change.__name__

    @property
    def stands_for(self) -> str:
        return (self.change.__doc__ or "").strip()


REMADE: list[Remade] = []


def remade(*bases: str, by: str, old_digest: bool = False):
    """Registers a change for each of the files that it is made for."""

    def register(change):
        usual = bases[len({m.name for m in REMADE}) % len(bases)]
        REMADE.extend(Remade(change, base, old_digest, frozenset((by,)), base == usual) for base in bases)
        return change

    return register


@remade("v1.0-early", "v2", by="parity with PyTorch")
def exported_from_a_flipped_sign(tensors, base):
    """The checkpoint was damaged in memory before it was exported."""
    name = "dim_reducer.0.weight"
    tensors[name].flat[np.abs(tensors[name]).argmax()] *= -1
    return tensors, base.sizes


@remade("v1.1-mpc", by="parity with PyTorch")
def exported_from_bfloat16(tensors, base):
    """The checkpoint was read in bfloat16."""
    return {n: (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for n, a in tensors.items()}, base.sizes


@remade("v2", "v1.0-qat", by="checkpoint's weights")
def exported_from_weights_a_millionth_off(tensors, base):
    """Another epoch's weights that had almost converged: no output tells them apart, every bit does."""
    return {n: a * np.float32(1 + 1e-6) for n, a in tensors.items()}, base.sizes


@remade("v1.0-early", "v1.1-mpc", by="checkpoint's sizes")
def exported_with_other_heads(tensors, base):
    """Heads assumed wrongly: shapes fit, attention does not."""
    return tensors, dataclasses.replace(base.sizes, heads=base.sizes.heads * 2)


@remade("v1.1-mpc", "v1.1-aws", by="native outputs")
def exported_with_another_last_row(tensors, base):
    """A row that makes no stored value: only the native outputs and the weights show it."""
    tensors["dim_reducer.4.weight"][-1] *= -1
    return tensors, base.sizes


@remade("v2 fp16", "v2 int8", old_digest=True, by="parity with PyTorch")
def a_head_dropped_under_the_old_digest(tensors, base):
    """A pruned encoder in a narrow file that goes on naming the checkpoint's weights."""
    tensors[f"{layer_name('s1', 0)}.out_proj.weight"][:, : base.sizes.head_width] = 0
    return tensors, base.sizes


@remade("v1.1-mpc fp16", old_digest=True, by="checkpoint's weights")
def one_per_cent_off_under_the_old_digest(tensors, base):
    """A weight edited before a half-precision export."""
    name = f"{layer_name('s2', 1)}.linear2.weight"
    tensors[name].flat[np.abs(tensors[name]).argmax()] *= 1.01
    return tensors, base.sizes


@remade("v1.0-early", "v1.0-qat", "v2 with QK-norm", by="checkpoint's weights")
def exported_from_another_checkpoint(tensors, base):
    """The file next to the one that was meant."""
    return base.tensors(RETRAINED), base.sizes
