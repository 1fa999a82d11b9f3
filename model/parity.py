"""Parity: how far two runs of one encoder are apart, measured on fixed inputs."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model.extras import need

Array = npt.NDArray[Any]
Inputs = dict[str, Array]  # by the names of `modelfile.INPUTS`


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What an encoder gives: codes int8 (N, dims), scale float32 (N,), embedding float32 (N, dims)."""

    codes: Array
    scale: Array
    embedding: Array


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far one run is from the one it is held against.

    Attributes:
      max_abs_error: largest difference of an embedding value.
      rms: of the reference's embedding values, the unit that errors are judged in.
      codes: how many were compared.
      differing_codes: how many of them differ.
      max_code_step: largest difference of a code.
      histogram: counts of |error| / rms by decade, below 1e-8, then 1e-8 .. 1e-7 and so on, last 1e-2 and above.
    """

    max_abs_error: float
    rms: float
    codes: int
    differing_codes: int
    max_code_step: int
    histogram: tuple[int, ...]

    @property
    def error_per_rms(self) -> float:
        return self.max_abs_error / self.rms if self.rms else float("inf")

    @property
    def equal_codes_share(self) -> float:
        return 1 - self.differing_codes / self.codes

    @property
    def ok(self) -> bool:
        """Within every limit of the table below."""
        return (
            self.error_per_rms <= MAX_ERROR_PER_RMS
            and self.differing_codes <= allowed_codes(self.codes)
            and self.max_code_step <= MAX_CODE_STEP
        )


DECADES = tuple(10.0**e for e in range(-8, -1))  # edges of `Distance.histogram`

# The limits. Absolute, because a cosine of 1.000 hides a wrong recurrence or a flipped sign.
MAX_ERROR_PER_RMS = 1e-5  # float32 in another order of operations moves values by 2e-6 to 4e-6 of the rms
MAX_DIFFERING_SHARE = 0.0002  # of codes: such an error crosses a rounding border about once in 10,000
FEW_CODES = 3  # that may always differ: chance alone puts so many into a few thousand codes, a fault hundreds
MAX_CODE_STEP = 1  # a crossing is one code

# (pixels, t2, t1): one row, the sampler's least and largest bin, odd and unequal lengths, one pixel and many.
SIZES = (
    (1, 1, 1),
    (1, 8, 8),
    (7, 24, 16),
    (64, 40, 40),
    (33, 13, 27),
    (5, 1, 40),
    (6, 40, 1),
    (2, 256, 8),
    (2, 8, 256),
)
GOLDEN_SIZES = ((8, 24, 24), (5, 8, 40), (3, 40, 8), (2, 1, 1))
SEED = 20_240_601  # any number; changing it changes golden records, so PyTorch has to be asked again


def allowed_codes(codes: int) -> int:
    """How many of so many codes may differ."""
    return max(FEW_CODES, int(codes * MAX_DIFFERING_SHARE))


def inputs_of(n: int, t2: int, t1: int, seed: int = SEED) -> Inputs:
    """Raw inputs of believable numbers, the same on every machine: NumPy's legacy generator is frozen.

    Every fourth pixel of a longer series ends in absent rows (day 0) that carry numbers all the same.
    """
    random = np.random.RandomState(seed + 1_000_003 * n + 1_009 * t2 + t1)
    ground = random.randint(200, 5_000, (n, 1, 10))
    s2 = np.clip(ground + random.randint(-400, 1_500, (n, t2, 10)), 0, 65_535).astype(np.uint16)
    s1 = np.clip(random.randint(2_000, 8_000, (n, 1, 2)) + random.randint(-900, 900, (n, t1, 2)), 0, 32_767)
    s2_doy = np.sort(random.randint(1, 367, (n, t2)), axis=1).astype(np.int16)
    s1_doy = random.randint(1, 367, (n, t1)).astype(np.int16)
    s2_doy[::4, t2 - t2 // 4 :] = 0
    s1_doy[::4, t1 - t1 // 4 :] = 0
    return {
        "s2": s2,
        "s2_doy": s2_doy,
        "s1": s1.astype(np.int16),
        "s1_orbit": random.randint(0, 2, (n, t1)).astype(np.uint8),
        "s1_doy": s1_doy,
    }


def digest_of(cases: Iterable[Inputs]) -> str:
    """sha256 over the inputs of all cases: tells whether a golden record speaks of these inputs."""
    digest = hashlib.sha256()
    for inputs in cases:
        for name, array in inputs.items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def distance(got: Iterable[Outputs], reference: Iterable[Outputs]) -> Distance:
    """Compares runs over the same cases, all cases together. NaN counts as infinitely far."""
    got, reference = list(got), list(reference)
    error = np.abs(_values(got, "embedding") - _values(reference, "embedding"))
    error = np.where(np.isnan(error), np.inf, error)
    rms = float(np.sqrt(np.mean(_values(reference, "embedding") ** 2)))
    steps = np.abs(_values(got, "codes") - _values(reference, "codes"))
    relative = error / (rms or 1.0)
    return Distance(
        max_abs_error=float(error.max()),
        rms=rms,
        codes=steps.size,
        differing_codes=int((steps > 0).sum()),
        max_code_step=int(steps.max()),
        histogram=tuple(int(c) for c in np.bincount(np.digitize(relative, DECADES), minlength=len(DECADES) + 1)),
    )


def _values(runs: list[Outputs], field: str) -> npt.NDArray[np.float64]:
    return np.concatenate([getattr(r, field).astype(np.float64).ravel() for r in runs])


class RunError(RuntimeError):
    """ONNX Runtime would not load or run a model."""


class Session:
    """ONNX Runtime on the CPU over a model file's bytes, with settings that a check wants to vary."""

    def __init__(self, content: bytes, threads: int = 1, optimised: bool = True) -> None:
        ort = need("onnxruntime", "running a model file")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        options.log_severity_level = 3  # warnings about fusions are not for people
        state = ort.capi.onnxruntime_pybind11_state
        self._refusals: tuple[type[Exception], ...] = (
            *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException),
            ValueError,  # for inputs that the file does not have
        )
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except self._refusals as e:
            raise RunError(f"ONNX Runtime cannot load it: {e}") from None

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        try:
            return Outputs(*self._session.run(["codes", "scale", "embedding"], dict(inputs)))
        except self._refusals as e:
            sizes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise RunError(f"ONNX Runtime cannot run it over {sizes}: {e}") from None
