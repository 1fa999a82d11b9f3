"""Variant: how one encoder is written into a model file, in which precision and for which devices."""

import dataclasses
import json
from typing import Any

from model.errors import BadInput
from model.weights import ATTENTION, CUSTOM_GRU, EncoderSizes

PRECISIONS = {
    "fp32": "float32 throughout",
    "fp16": "float16 products of tokens and attention; norms, softmax, recurrence, reducer and quantiser in float32",
    "int8": "int8 products of tokens with int8 weights behind each norm; the rest, the recurrence too, in float32",
}
TARGETS = {
    "any": "one file for CPU and CUDA",
    "cpu": "for the CPU alone: an ONNX GRU in place of a Scan, which CUDA would hand back to the CPU",
}
SCAN, GRU, NONE = "scan", "gru", "none"


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a model file is beside its encoder and its profile.

    Attributes:
      precision: one of `PRECISIONS`.
      recurrence: the operator of a GRU pooling, "scan" or "gru", and "none" where there is no GRU.
      devices: on which it may run, of "cpu" and "cuda"; another one is refused when the file is loaded.
    """

    precision: str = "fp32"
    recurrence: str = NONE
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise BadInput(f"precision {self.precision!r}: it must be one of {', '.join(PRECISIONS)}")
        if self.recurrence not in (SCAN, GRU, NONE):
            raise BadInput(f"recurrence {self.recurrence!r}: this release knows {SCAN}, {GRU} and {NONE}")
        if not self.devices or set(self.devices) - {"cpu", "cuda"}:
            raise BadInput(f"devices {self.devices}: this release knows cpu and cuda")

    @property
    def suffix(self) -> str:
        """What tells its file's name from the float32 one's: "" or "-fp16" or "-int8"."""
        return "" if self.precision == "fp32" else f"-{self.precision}"


def variant_from_json(text: str) -> Variant:
    """Reads the record of a model file.

    Raises:
      BadInput, ValueError, TypeError: not such a record, or one of a form that this release does not know.
    """
    fields: Any = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"the variant is {type(fields).__name__}, not an object")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return Variant(**values)


def variant_of(sizes: EncoderSizes, precision: str = "fp32", target: str = "any") -> Variant:
    """The variant of an encoder for what `--precision` and `--target` ask.

    TESSERA's own GRU is either a Scan of plain operators, which every provider runs, or an ONNX GRU with
    `linear_before_reset=0`: exact on the CPU, but CUDA's kernels have only 1 and the node falls back to the CPU
    (facts/model.md 3.4). nn.GRU is an ONNX GRU with 1, at home on both.

    Raises:
      BadInput: an unknown precision or target, or two that exclude each other.
    """
    if target not in TARGETS:
        raise BadInput(f"target {target!r}: it must be one of {', '.join(TARGETS)}")
    recurrence = NONE if sizes.pooling == ATTENTION else GRU
    if sizes.pooling == CUSTOM_GRU and target == "any" and precision != "int8":
        recurrence = SCAN
    on_cpu_only = target == "cpu" or precision == "int8"  # no CUDA kernels for int8 products of this form
    if precision == "fp16" and target == "cpu":
        raise BadInput(
            "precision fp16 for target cpu: a CPU computes it in float32 with casts between, slower than fp32; "
            "use --precision fp32 or int8, or leave --target out for a file for CUDA"
        )
    return Variant(precision, recurrence, ("cpu",) if on_cpu_only else ("cpu", "cuda"))
