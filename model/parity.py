"""Parity: how far two runs of one encoder are apart, measured on fixed inputs."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model.extras import need
from model.limits import LIMITS, Limits

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
      cosine: least cosine between a pixel's two vectors.
      histogram: counts of |error| / rms by decade, below 1e-8, then 1e-8 .. 1e-7 and so on, last 1e-2 and above.
      code_steps: counts of differences of codes: 0, 1, 2 and so on, the last for `STEPS` and more.
    """

    max_abs_error: float
    rms: float
    codes: int
    differing_codes: int
    max_code_step: int
    cosine: float
    histogram: tuple[int, ...]
    code_steps: tuple[int, ...]

    @property
    def error_per_rms(self) -> float:
        return self.max_abs_error / self.rms if self.rms else float("inf")

    @property
    def equal_codes_share(self) -> float:
        return 1 - self.differing_codes / self.codes

    def within(self, precision: str) -> bool:
        """Whether it keeps every limit of a precision (`limits.LIMITS`)."""
        return self.keeps(LIMITS[precision])

    def keeps(self, limit: Limits) -> bool:
        """Whether it keeps these limits."""
        return (
            self.error_per_rms <= limit.error_per_rms
            and self.differing_codes <= limit.allowed(self.codes)
            and (limit.code_step is None or self.max_code_step <= limit.code_step)
            and self.cosine >= limit.cosine
        )

    @property
    def ok(self) -> bool:
        """Within the limits of float32."""
        return self.within("fp32")


DECADES = tuple(10.0**e for e in range(-8, -1))  # edges of `Distance.histogram`
STEPS = 5  # last bar of `Distance.code_steps`

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


def calibration_inputs() -> Iterator[Inputs]:
    """Pixels by which int8 ranges are measured: believable ones from dark to cloud, radar-free ones, rare ones."""
    for seed in range(4):
        case = inputs_of(64, 24, 24, seed=SEED + 1 + seed)
        brightness = np.random.RandomState(seed).uniform(0.05, 3.0, (64, 1, 1))  # water to cloud tops
        case["s2"] = np.clip(case["s2"] * brightness, 0, 65_535).astype(np.uint16)
        if seed == 3:
            case["s1_doy"][:] = 0
        yield case
    yield from (rare_inputs(SEED + seed) for seed in range(2))


def rare_inputs(seed: int) -> Inputs:
    """64 pixels as imagery has them seldom: night and fresh snow, saturated rows, strong echoes, passes of one channel.

    S2 up to 16,000 with single rows of 65,535; S1 over 0..16,000, which is -50 to 30 dB as it is stored; every third
    pixel without VH, every eighth with passes of zeros.
    """
    random, case = np.random.RandomState(seed), inputs_of(64, 24, 24, seed=seed)
    n, t2 = case["s2_doy"].shape
    t1 = case["s1_doy"].shape[1]
    ground = random.randint(0, 16_000, (n, 1, 10))
    ground[::4] = random.randint(0, 60, ground[::4].shape)
    case["s2"] = np.clip(ground + random.randint(-300, 300, (n, t2, 10)), 0, 65_535).astype(np.uint16)
    case["s2"][1::4, t2 // 3] = 65_535
    echo = random.randint(0, 16_000, (n, 1, 2)) + random.randint(-1_500, 1_500, (n, t1, 2))
    case["s1"] = np.clip(echo, 0, 32_767).astype(np.int16)
    case["s1"][::3, :, 1] = 0
    case["s1"][::8, : t1 // 2] = 0
    return case


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
        cosine=min(_cosine(g, r) for g, r in zip(got, reference, strict=True)),
        histogram=tuple(int(c) for c in np.bincount(np.digitize(relative, DECADES), minlength=len(DECADES) + 1)),
        code_steps=tuple(int(c) for c in np.bincount(np.minimum(steps, STEPS).astype(int), minlength=STEPS + 1)),
    )


def _values(runs: list[Outputs], field: str) -> npt.NDArray[np.float64]:
    return np.concatenate([getattr(r, field).astype(np.float64).ravel() for r in runs])


def _cosine(got: Outputs, reference: Outputs) -> float:
    """Of the worst pixel. Two vectors of zeros agree; NaN agrees with nothing."""
    a, b = got.embedding.astype(np.float64), reference.embedding.astype(np.float64)
    product, size = (a * b).sum(-1), np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    alike = np.divide(product, size, out=(a == b).all(-1).astype(np.float64), where=size != 0)
    return float(np.where(np.isnan(alike), -1, alike).min())


class RunError(RuntimeError):
    """ONNX Runtime would not load or run a model."""


LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
OUTPUTS = ("codes", "scale", "embedding")


class Session:
    """ONNX Runtime over a model file's bytes, with settings that a check wants to vary.

    Args:
      level: of graph optimisation, one of `LEVELS`.
      provider: the only one that is asked for.
      profile: prefix of the file into which ONNX Runtime writes what ran where; None for none.
    """

    def __init__(
        self,
        content: bytes,
        threads: int = 1,
        level: str = "all",
        provider: str = "CPUExecutionProvider",
        profile: str | None = None,
    ) -> None:
        ort = need("onnxruntime", "running a model file")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
        options.log_severity_level = 4  # warnings about fusions are not for people, and errors are raised
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        state = vars(ort.capi.onnxruntime_pybind11_state).values()
        self._refusals: tuple[type[Exception], ...] = (
            *(e for e in state if isinstance(e, type) and issubclass(e, Exception)),
            *(ValueError, RuntimeError, MemoryError),  # inputs that the file does not have; what C++ threw
        )
        try:
            self._session = ort.InferenceSession(content, options, providers=[provider])
        except self._refusals as e:
            raise RunError(f"ONNX Runtime cannot load it: {e}") from None

    @property
    def providers(self) -> list[str]:
        """What it runs on, the one that was asked first where ONNX Runtime could have it."""
        return list(self._session.get_providers())

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """Raises RunError where ONNX Runtime would not."""
        return Outputs(*self.values(inputs, OUTPUTS))

    def values(self, inputs: Mapping[str, Array], names: Iterable[str]) -> list[Array]:
        """Any outputs of the file by name. Raises RunError where ONNX Runtime would not."""
        try:
            return list(self._session.run(list(names), dict(inputs)))
        except self._refusals as e:
            sizes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise RunError(f"ONNX Runtime cannot run it over {sizes}: {e}") from None

    def end_profile(self) -> str:
        """Path of the profile, complete."""
        return str(self._session.end_profiling())
