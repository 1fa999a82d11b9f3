"""Gate runs: the checks that run a model file, against the NumPy encoder, PyTorch's recorded outputs, and itself."""

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from model import gate_quantiser, parity, reference
from model.gate_graph import ranges_of
from model.gate_placement import placement
from model.gate_report import NUMBERS, PLACEMENT, ROBUSTNESS, Check
from model.graph import NATIVE, build, layer_inputs
from model.limits import GOLDEN_ANGLE, LEAST_MOVEMENT, LIMITS, RANGE_ERROR, SAME_FILE, SCALE_ERROR, Limits
from model.modelfile import ModelFile
from model.parity import Distance, Inputs, Outputs, RunError, Session, distance, inputs_of
from model.quantise import dequantise
from model.stored import Array
from model.weights import ATTENTION, Tensors

FULL_SIZES = ((256, 40, 40), (128, 64, 48), (16, 128, 104), (3, 256, 256), (257, 9, 31))
FULL_SEEDS = (1, 2, 3)  # further inputs for every size
BASE_LEVEL = "all"  # what workers run at
# Days that are held against the reference: ends of months, of a byte, of a year.
DAYS = (1, 2, 31, 32, 59, 60, 127, 128, 129, 255, 256, 257, 364, 365, 366)


class Bench:
    """A model file, its session, and what it gives for inputs that are made once.

    Args:
      weights: its tensors as it stores them, dequantised.
      full: more inputs and settings.

    Raises:
      RunError: ONNX Runtime will not load it, or not run it over one of the sizes.
    """

    def __init__(
        self, content: bytes, proto: ModelProto, model: ModelFile, arrays: dict[str, Array], weights: Tensors, full: bool
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

    def checks(self) -> Iterator[Check]:
        """Every check, each a failed one where the file does not run for it."""
        for name, group, check in (
            ("parity with NumPy", NUMBERS, self.parity),
            ("whole output", NUMBERS, self.whole_output),
            ("golden outputs", NUMBERS, self.golden),
            ("days", NUMBERS, self.days),
            ("absent rows", NUMBERS, self.absent_rows),
            ("extremes", NUMBERS, self.extremes),
            ("quantiser", NUMBERS, lambda: gate_quantiser.quantiser(self.model, self.runs)),
            ("quantiser edges", NUMBERS, lambda: gate_quantiser.edges(self.proto, self.model)),
            *([("int8 ranges", NUMBERS, self.ranges)] if self.precision == "int8" else []),
            ("order of observations", ROBUSTNESS, self.order),
            ("other neighbours", ROBUSTNESS, self.neighbours),
            ("order of pixels", ROBUSTNESS, self.pixels_reversed),
            ("one pixel at a time", ROBUSTNESS, self.one_at_a_time),
            ("optimisation levels", ROBUSTNESS, self.levels),
            ("two threads", ROBUSTNESS, self.threads),
            ("same bytes twice", ROBUSTNESS, self.again),
            ("placement", PLACEMENT, lambda: placement(self.content, self.model.variant, self.cases[2])),
        ):
            try:
                yield check()
            except RunError as e:
                yield Check(name, False, str(e), "it runs", "a worker could not encode with it", group)

    def parity(self) -> Check:
        apart = [distance([a], [b]).error_per_rms for a, b in zip(self.runs, self.slow_runs, strict=True)]
        n, t2 = self.cases[int(np.argmax(apart))]["s2_doy"].shape
        t1 = self.cases[int(np.argmax(apart))]["s1_doy"].shape[1]
        words = f"{words_of(self.distance)}; over {len(self.cases)} sizes, worst {n} pixels of {t2} and {t1} rows"
        why = f"the graph computes something else than a {self.model.profile.family} encoder with these weights"
        ok = self.distance.within(self.precision)
        return Check("parity with NumPy", ok, words, limit_words(LIMITS[self.precision]), why, NUMBERS)

    def whole_output(self) -> Check:
        """The encoder's output before it is cut; what is stored are its first values, bit for bit."""
        case = self.cases[2]
        native, embedding = native_of(self.proto, self.model.profile.native_dims, [case])[0]
        slow = reference.encode_native(self.weights, self.model.encoder, self.model.profile, case)
        far, limit = error_of(native, slow), LIMITS[self.precision]
        same = np.array_equal(native[:, : self.model.dims], embedding)
        words = f"{native.shape[1]} values, {'the first' if same else 'NOT the first'} {embedding.shape[1]} stored; "
        return Check(
            "whole output",
            same and far <= limit.error_per_rms,
            f"{words}error {far:.1e} of rms",
            f"the first {self.model.dims} values are stored; error at most {limit.error_per_rms:.0e} of rms",
            "values would be stored that are not the first ones, or another prefix would be wrong",
            NUMBERS,
        )

    def golden(self) -> Check:
        """PyTorch's codes and scales of the export, met again on this machine."""
        record, limit = self.model.golden, LIMITS[self.precision]
        must = limit_words(limit, "scales", SCALE_ERROR[self.precision])
        name, why = "golden outputs", "this file or this ONNX Runtime gives other codes than PyTorch gave at export"
        try:
            cases = [inputs_of(*size) for size in parity.GOLDEN_SIZES]
            if record["cases"] != [list(size) for size in parity.GOLDEN_SIZES]:
                return Check(name, False, f"a record of the cases {record['cases']}", f"{parity.GOLDEN_SIZES}", why)
            if parity.digest_of(cases) != record["inputs_sha256"]:
                return Check(name, False, "a record of other inputs", "its inputs' digest", why)
            scale = np.frombuffer(base64.b64decode(record["scales"], validate=True), "<f4")
            codes = np.frombuffer(base64.b64decode(record["codes"], validate=True), np.int8)
            codes = codes.reshape(sum(n for n, _, _ in parity.GOLDEN_SIZES), self.model.dims)
            if scale.shape != codes.shape[:1] or not np.isfinite(scale).all() or scale.min() <= 0:
                return Check(name, False, f"a record of {len(scale)} scales", f"{len(codes)}, above 0", why)
        except (KeyError, TypeError, ValueError, binascii.Error) as e:
            return Check(name, False, f"a record that cannot be read: {e}", "a record", why)
        seen = joined([self.run(case) for case in cases])
        meant, got = (Outputs(c, s, dequantise(c, s)) for c, s in ((codes, scale), (seen.codes, seen.scale)))
        far = distance([got], [meant])
        off = float(np.abs(seen.scale / scale - 1).max())
        # The values are those of codes, so their error is half a step where the codes are right.
        ok = dataclasses.replace(far, max_abs_error=0.0, cosine=max(far.cosine, limit.cosine)).keeps(limit)
        ok = ok and off <= SCALE_ERROR[self.precision]
        if self.precision == "int8":
            least = min(limit.cosine, 1.0)
            told = self.model.parity.get("cosine")
            if isinstance(told, float):
                least = max(least, 1 - GOLDEN_ANGLE[0] * (1 - told) - GOLDEN_ANGLE[1])
            ok = ok and far.cosine >= least
            must += f"; cosine of the codes at least {least:.6f}"
        return Check(name, ok, f"{words_of(far, False)}, scales within {off:.1e}", must, why, NUMBERS)

    def days(self) -> Check:
        """One pixel on every day of a leap year, optical and radar apart: each day counts, and as it should."""
        least, faults = LEAST_MOVEMENT[self.precision], []
        shown = range(1, 367) if self.full else DAYS
        steps, parts, slow_parts = [], [], []
        for sensor in ("s2", "s1"):
            case = {name: np.repeat(array, 366, axis=0) for name, array in inputs_of(1, 1, 1).items()}
            case[f"{sensor}_doy"][:, 0] = np.arange(1, 367)
            run = self.run(case)
            rms = float(np.sqrt(np.mean(run.embedding.astype(np.float64) ** 2))) or 1.0
            step = np.abs(np.diff(run.embedding.astype(np.float64), axis=0)).max(1) / rms
            steps.append(float(step.min()))
            if not step.min() >= least:
                faults.append(f"{sensor} days {step.argmin() + 1} and {step.argmin() + 2} are alike")
            rows = np.array(shown) - 1
            parts.append(Outputs(run.codes[rows], run.scale[rows], run.embedding[rows]))
            slow_parts.append(self.slow({name: array[rows] for name, array in case.items()}))
        far = distance(parts, slow_parts)
        measured = "; ".join([*faults, f"least step {min(steps):.1e} of rms; {len(shown)} days: {words_of(far)}"])
        limit = f"each day at least {least:.0e} from the next; {limit_words(LIMITS[self.precision])}"
        why = "observations would be put on other days, or the last day of a leap year on the day before"
        return Check("days", not faults and far.within(self.precision), measured, limit, why, NUMBERS)

    def absent_rows(self) -> Check:
        """Rows of day 0 are zeros after standardisation, whatever stands in them: some of a series, and all of it."""
        full = inputs_of(16, 8, 8)
        full["s1_doy"][:8] = 0  # pixels without radar
        full["s2_doy"][4:12, ::3] = 0
        bare = {name: array.copy() for name, array in full.items()}
        for sensor, channels in (("s2", ("s2",)), ("s1", ("s1", "s1_orbit"))):
            for name in channels:
                bare[name][full[f"{sensor}_doy"] == 0] = 0
        got, plain = self.run(full), self.run(bare)
        same, far = np.array_equal(got.embedding, plain.embedding), distance([got], [self.slow(full)])
        why = "pixels without radar would get codes from whatever stands in for it"
        found = f"numbers of day 0 {'ignored' if same else 'USED'}; {words_of(far)}"
        limit = f"ignored; {limit_words(LIMITS[self.precision])}"
        return Check("absent rows", same and far.within(self.precision), found, limit, why, NUMBERS)

    def extremes(self) -> Check:
        """The whole range of each input's type: least and largest numbers, zeros, first and last day, and noise."""
        random, case = np.random.RandomState(0), inputs_of(32, 8, 8)
        shape2, shape1 = case["s2"].shape, case["s1"].shape
        case["s2"] = random.randint(0, 65_536, shape2).astype(np.uint16)
        case["s1"] = random.randint(-32_768, 32_768, shape1).astype(np.int16)
        corners = ((0, 0, 1), (65_535, 32_767, 366), (0, -32_768, 366), (65_535, -32_768, 1), (0, 0, 0), (10_001, 0, 366))
        for i, (s2, s1, day) in enumerate(corners):
            for name, value in (("s2", s2), ("s1", s1), ("s2_doy", day), ("s1_doy", day)):
                case[name][i] = value
        run = self.run(case)
        good = np.isfinite(run.embedding).all(1) & np.isfinite(run.scale) & (run.scale > 0)
        far, must = distance([run], [self.slow(case)]), "finite, scale above 0"
        ok = bool(good.all())
        if self.precision != "int8":  # there, what lies beyond the calibrated ranges is clipped, by design
            ok, must = ok and far.within(self.precision), f"{must}; {limit_words(LIMITS[self.precision])}"
        found = "all finite" if good.all() else f"{int((~good).sum())} of {len(good)} pixels are not finite"
        why = "a bright cloud or a dark lake would become an embedding of nothing"
        return Check("extremes", ok, f"{found}; {words_of(far)}", must, why, NUMBERS)

    def ranges(self) -> Check:
        """The ranges of int8 inputs, measured again: on the same pixels, in a float32 graph of the stored weights."""
        model, wide = self.model, dataclasses.replace(self.model.variant, precision="fp32")
        inputs = layer_inputs(self.weights, model.encoder, model.profile, wide)
        graph = build(self.weights, self.arrays["day_table"], model.encoder, model.profile, wide)
        stored = ranges_of(self.arrays, model.encoder)
        names = sorted({inputs[layer] for layer in stored})
        del graph.output[:]
        graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        probe = helper.make_model(graph, ir_version=self.proto.ir_version, opset_imports=self.proto.opset_import)
        session = Session(probe.SerializeToString())
        reach = dict.fromkeys(names, 0.0)
        for case in parity.calibration_inputs():
            for name, values in zip(names, session.values(case, names), strict=True):
                reach[name] = max(reach[name], float(np.abs(values).max()))
        off = {layer: abs(stored[layer] / max(reach[inputs[layer]], 1e-6) - 1) for layer in stored}
        worst = max(off, key=lambda layer: off[layer])
        measured = f"{len(off)} layers, worst {off[worst]:.1%} off ({worst})"
        why = "larger inputs would be clipped, or smaller ones lie on too coarse a grid"
        return Check("int8 ranges", off[worst] <= RANGE_ERROR, measured, f"within {RANGE_ERROR:.0%}", why, NUMBERS)

    def order(self) -> Check:
        """Attention knows no order of the rows; before a GRU each sensor's order must count."""
        name, limit = "order of observations", SAME_FILE[self.precision]
        if self.model.encoder.pooling == ATTENTION:
            far = self.apart(lambda case: shuffled(case, ("s2", "s1")))
            return _near(name, far, limit, f"shuffled: {words_of(far)}", "this family's pooling knows no order")
        least, moved = LEAST_MOVEMENT[self.precision], {}
        for sensor in ("s2", "s1"):
            moved[sensor] = self.apart(lambda case, s=sensor: shuffled(case, (s,))).error_per_rms  # type: ignore[misc]
        case = shuffled(self.cases[2], ("s2", "s1"))
        far = distance([self.run(case)], [self.slow(case)])
        ok = min(moved.values()) >= least and far.within(self.precision)
        found = ", ".join(f"{sensor} by {much:.1e}" for sensor, much in moved.items())
        return Check(
            name,
            ok,
            f"shuffling moves {found} of rms; shuffled {words_of(far)}",
            f"each sensor at least {least:.0e} of rms; {limit_words(LIMITS[self.precision])}",
            "its GRU would be without effect, or read the rows in another order than theirs",
            ROBUSTNESS,
        )

    def neighbours(self) -> Check:
        why = "a pixel's code would depend on its neighbours"
        far = self.apart(_doubled, lambda run, n: _rows(run, slice(n)))
        return _near("other neighbours", far, SAME_FILE[self.precision], words_of(far), why)

    def pixels_reversed(self) -> Check:
        why = "a pixel's code would depend on its place in the batch"
        far = self.apart(_reversed, lambda run, n: _rows(run, slice(None, None, -1)))
        return _near("order of pixels", far, SAME_FILE[self.precision], words_of(far), why)

    def one_at_a_time(self) -> Check:
        count = len(parity.SIZES)  # not the large cases of `full`
        alone = [
            joined([self.run({name: array[i : i + 1] for name, array in case.items()}) for i in range(len(case["s2"]))])
            for case in self.cases[:count]
        ]
        far = distance(alone, self.runs[:count])
        why = "a code would depend on how many pixels share its batch"
        return _near("one pixel at a time", far, SAME_FILE[self.precision], words_of(far), why)

    def levels(self) -> Check:
        """Every optimisation level of ONNX Runtime; `full` adds one, two and four threads to each."""
        far: dict[str, Distance] = {}
        for level in parity.LEVELS:
            for threads in (1, 2, 4) if self.full else (1,):
                if (level, threads) != (BASE_LEVEL, 1):
                    session = Session(self.content, threads, level)
                    label = f"{level} on {threads} threads" if self.full else level
                    far[label] = distance((self.run(case, session) for case in self.cases), self.runs)
        limit = SAME_FILE[self.precision]
        words = "; ".join(f"{label}: {words_of(d)}" for label, d in far.items())
        why = "codes would depend on what a runtime makes of the graph"
        ok = all(d.keeps(limit) for d in far.values())
        return Check("optimisation levels", ok, words, limit_words(limit), why, ROBUSTNESS)

    def threads(self) -> Check:
        session = Session(self.content, threads=2)
        far = distance((self.run(case, session) for case in self.cases), self.runs)
        why = "codes would depend on a worker's settings"
        return _near("two threads", far, SAME_FILE[self.precision], words_of(far), why)

    def again(self) -> Check:
        """A second run and a second session; what draws or remembers shows here."""
        second = Session(self.content)
        faults = [
            f"{what} over {len(case['s2'])} pixels of {case['s2'].shape[1]} and {case['s1'].shape[1]} rows"
            for what, session in (("run", self.session), ("session", second))
            for case, run in zip(self.cases, self.runs, strict=True)
            if not _equal(self.run(case, session), run)
        ]
        measured = f"another {faults[0]} differs" if faults else f"{2 * len(self.cases)} runs, equal in every bit"
        why = "the same revision would not be the same bytes"
        return Check("same bytes twice", not faults, measured, "equal in every bit", why, ROBUSTNESS)

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


def error_of(got: npt.NDArray[Any], meant: npt.NDArray[Any]) -> float:
    """Largest |error| in units of the rms; NaN is infinitely far."""
    rms = float(np.sqrt(np.mean(meant.astype(np.float64) ** 2))) or 1.0
    error = np.abs(got.astype(np.float64) - meant)
    return float(np.where(np.isnan(error), np.inf, error).max()) / rms


def shuffled(case: Inputs, sensors: tuple[str, ...]) -> Inputs:
    """Observations of these sensors in another order, with their days and orbits."""
    random = np.random.RandomState(0)
    order = {s: random.permutation(case[f"{s}_doy"].shape[1]) for s in sensors}
    return {name: array[:, order[name[:2]]] if name[:2] in order else array for name, array in case.items()}


def _doubled(case: Inputs) -> Inputs:
    """The same pixels, followed by others: themselves in reverse, four times as bright."""
    others = {name: array[::-1].copy() for name, array in case.items()}
    others["s2"] = np.minimum(others["s2"].astype(np.int64) * 4, 65_535).astype(np.uint16)
    return {name: np.concatenate([array, others[name]]) for name, array in case.items()}


def _reversed(case: Inputs) -> Inputs:
    return {name: np.ascontiguousarray(array[::-1]) for name, array in case.items()}


def _rows(run: Outputs, rows: slice) -> Outputs:
    return Outputs(run.codes[rows], run.scale[rows], run.embedding[rows])


def _equal(a: Outputs, b: Outputs) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Outputs))


def joined(runs: list[Outputs]) -> Outputs:
    """All pixels of several runs."""
    return Outputs(*(np.concatenate([getattr(run, f.name) for run in runs]) for f in dataclasses.fields(Outputs)))


def _near(name: str, far: Distance, limit: Limits, words: str, why: str) -> Check:
    return Check(name, far.keeps(limit), words, limit_words(limit), why, ROBUSTNESS)


def words_of(far: Distance, errors: bool = True) -> str:
    """A distance in words; of coarse ones also the share of equal codes and the cosine."""
    words = f"error {far.error_per_rms:.1e} of rms, " if errors else ""
    words += f"{far.differing_codes} of {far.codes:,} codes differ, step {far.max_code_step}"
    if far.differing_codes > 0.001 * far.codes:
        words += f" ({far.equal_codes_share:.2%} equal, cosine {far.cosine:.6f})"
    return words


def limit_words(limit: Limits, what: str = "", error: float = 0.0) -> str:
    """Limits in words, without those that are not set."""
    parts = [] if np.isinf(limit.error_per_rms) or what else [f"error {limit.error_per_rms:.0e} of rms"]
    if limit.equal_codes_share:
        parts.append(f"{limit.equal_codes_share:.2%} of codes equal")
    if limit.code_step is not None:
        parts.append(f"step {limit.code_step}")
    if limit.cosine < 0.99999 or not parts:
        parts.append(f"cosine {limit.cosine:g}")
    if what:
        parts.append(f"{what} within {error:.0e}")
    return ", ".join(parts)
