"""Gate bench: a model file at work, beside the NumPy encoder over the same inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from model import parity, reference
from model.graph import NATIVE
from model.limits import Limits
from model.modelfile import ModelFile
from model.parity import Distance, Inputs, Outputs, RunError, Session, distance, inputs_of
from model.stored import Array
from model.weights import Tensors

FULL_SIZES = ((256, 40, 40), (128, 64, 48), (16, 128, 104), (3, 256, 256), (257, 9, 31))
FULL_SEEDS = (1, 2, 3)  # further inputs for every size
COARSE = 1e-3  # share of differing codes from which a reader wants to know the cosine too
SMALL_CASE = 2  # of `parity.SIZES`: 7 pixels of 24 and 16 rows, where one case is enough


class Bench:
    """A model file, its session, and what it gives for inputs that are made once.

    Args:
      weights: its tensors as it stores them, dequantised.
      full: more inputs and settings.

    Raises:
      RunError: ONNX Runtime will not load it, or not run it over one of the sizes.
    """

    def __init__(
        self,
        content: bytes,
        proto: ModelProto,
        model: ModelFile,
        arrays: dict[str, Array],
        weights: Tensors,
        full: bool,
    ) -> None:
        self.content, self.proto, self.model, self.full = content, proto, model, full
        self.arrays, self.weights = arrays, weights
        self.precision = model.variant.precision
        self.session = Session(content)
        self.cases = [inputs_of(*size) for size in parity.SIZES]
        if full:
            self.cases += [inputs_of(*size, seed=seed) for size in parity.SIZES for seed in FULL_SEEDS]
            self.cases += [inputs_of(*size) for size in FULL_SIZES]
        self.runs = [self.run(case) for case in self.cases]
        self.slow_runs = [self.slow(case) for case in self.cases]
        self.distance = distance(self.runs, self.slow_runs)

    def run(self, case: Inputs, session: Session | None = None) -> Outputs:
        """What the file gives. Raises RunError where it does not run, or gives another shape than the contract's."""
        run, n, dims = (session or self.session).run(case), len(case["s2"]), self.model.dims
        shapes = run.codes.shape, run.scale.shape, run.embedding.shape
        if shapes != ((n, dims), (n,), (n, dims)):
            raise RunError(f"it gives codes, scale and embedding of {shapes} for {n} pixels and {dims} values")
        return run

    def slow(self, case: Inputs) -> Outputs:
        return reference.encode(self.weights, self.model.encoder, self.model.profile, case)

    def apart(
        self, change: Callable[[Inputs], Inputs], back: Callable[[Outputs, int], Outputs] = lambda run, n: run
    ) -> Distance:
        """From the runs, those over changed inputs; `back` brings outputs into the order of the n pixels."""
        moved = [back(self.run(change(case)), len(case["s2"])) for case in self.cases]
        return distance(moved, self.runs)


def native_of(
    proto: ModelProto, native_dims: int, cases: list[Inputs]
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """(encoder's whole output, embedding) of each case, by a copy of the file that gives both.

    Raises:
      RunError: there is no such tensor, or it is of another width.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, ["pixel", native_dims]))
    session = Session(copy.SerializeToString())
    found = []
    for case in cases:
        native, embedding = session.values(case, (NATIVE, "embedding"))
        if native.shape != (len(case["s2"]), native_dims):
            raise RunError(f"the encoder gives {native.shape}, its record says {native_dims} values")
        found.append((native, embedding))
    return found


@dataclasses.dataclass(frozen=True)
class Apart:
    """How far whole outputs are from those that are meant: largest |error| / rms, least cosine of a pixel."""

    error: float
    cosine: float

    def keeps(self, limit: Limits) -> bool:
        return self.error <= limit.error_per_rms and self.cosine >= limit.cosine

    @property
    def words(self) -> str:
        return f"error {self.error:.1e} of rms, cosine {self.cosine:.8f}"


def apart_of(got: npt.NDArray[Any], meant: npt.NDArray[Any]) -> Apart:
    """Compares outputs (N, native_dims). NaN is infinitely far."""
    x, y = got.astype(np.float64), meant.astype(np.float64)
    rms = float(np.sqrt(np.mean(y**2))) or 1.0
    error = np.where(np.isnan(x), np.inf, np.abs(x - y))
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    alike = np.divide((x * y).sum(1), size, out=(x == y).all(1).astype(np.float64), where=size > 0)
    return Apart(float(error.max()) / rms, float(np.where(np.isnan(alike), -1, alike).min()))


def shuffled(case: Inputs, sensors: tuple[str, ...]) -> Inputs:
    """Observations of these sensors in another order, with their days and orbits."""
    random = np.random.RandomState(0)
    order = {s: random.permutation(case[f"{s}_doy"].shape[1]) for s in sensors}
    return {name: array[:, order[name[:2]]] if name[:2] in order else array for name, array in case.items()}


def joined(runs: list[Outputs]) -> Outputs:
    """All pixels of several runs."""
    return Outputs(*(np.concatenate([getattr(run, f.name) for run in runs]) for f in dataclasses.fields(Outputs)))


def words_of(far: Distance, values: bool = True) -> str:
    """A distance in words; of coarse ones also the share of equal codes and the cosine."""
    words = f"error {far.error_per_rms:.1e} of rms, " if values else ""
    words += f"{far.differing_codes} of {far.codes:,} codes differ, step {far.max_code_step}"
    if far.differing_codes > COARSE * far.codes:
        words += f" ({far.equal_codes_share:.2%} equal, cosine {far.cosine:.6f})"
    return words


def limit_words(limit: Limits, values: bool = True) -> str:
    """Limits in words, without those that are not set; `values`: whether embedding values are compared, not codes."""
    parts = [f"error {limit.error_per_rms:.0e} of rms"] if values and not np.isinf(limit.error_per_rms) else []
    if limit.equal_codes_share:
        parts.append(f"{limit.equal_codes_share:.2%} of codes equal")
    if limit.code_step is not None:
        parts.append(f"step {limit.code_step}")
    if limit.cosine < 0.99999 or not parts:
        parts.append(f"cosine {limit.cosine:g}")
    return ", ".join(parts)


def native_words(limit: Limits) -> str:
    """The part of limits that whole outputs, which have no codes, are held to."""
    error = [] if np.isinf(limit.error_per_rms) else [f"error {limit.error_per_rms:.0e} of rms"]
    return ", ".join([*error, f"cosine {limit.cosine:g}"])
