"""Gate runs: the checks of a model file's numbers, against the NumPy encoder, PyTorch's recorded outputs and itself."""

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from onnx import TensorProto, helper

from model import gate_half, gate_quantiser, gate_robustness, gate_tokens, parity, reference
from model.gate_bench import SMALL_CASE, Bench, apart_of, joined, limit_words, native_of, native_words, words_of
from model.gate_graph import ranges_of
from model.gate_placement import placement
from model.gate_report import NUMBERS, PLACEMENT, ROBUSTNESS, Check
from model.graph import build, layer_inputs
from model.limits import EXTREME, GOLDEN_ANGLE, LEAST_MOVEMENT, LIMITS, RANGE_ERROR, SCALE_ERROR, UNUSUAL
from model.parity import Outputs, RunError, Session, distance, inputs_of, rare_inputs
from model.quantise import dequantise

# Days that are held against the reference: ends of months, of a byte, of a year.
DAYS = (1, 2, 31, 32, 59, 60, 127, 128, 129, 255, 256, 257, 364, 365, 366)


def parity_with_numpy(bench: Bench) -> Check:
    apart = [distance([a], [b]).error_per_rms for a, b in zip(bench.runs, bench.slow_runs, strict=True)]
    n, t2 = bench.cases[int(np.argmax(apart))]["s2_doy"].shape
    t1 = bench.cases[int(np.argmax(apart))]["s1_doy"].shape[1]
    words = f"{words_of(bench.distance)}; over {len(bench.cases)} sizes, worst (pixels, t2, t1) = ({n}, {t2}, {t1})"
    why = f"the graph computes something else than a {bench.model.profile.family} encoder with these weights"
    ok = bench.distance.within(bench.precision)
    return Check("parity with NumPy", ok, words, limit_words(LIMITS[bench.precision]), why, NUMBERS)


def whole_output(bench: Bench) -> Check:
    """The encoder's output before it is cut; what is stored are its first values, bit for bit."""
    case = bench.cases[SMALL_CASE]
    native, embedding = native_of(bench.proto, bench.model.profile.native_dims, [case])[0]
    slow = reference.encode_native(bench.weights, bench.model.encoder, bench.model.profile, case)
    far, limit = apart_of(native, slow), LIMITS[bench.precision]
    same = np.array_equal(native[:, : bench.model.dims], embedding)
    words = f"{native.shape[1]} values, {'the first' if same else 'NOT the first'} {embedding.shape[1]} stored; "
    return Check(
        "whole output",
        same and far.keeps(limit),
        f"{words}{far.words}",
        f"the first {bench.model.dims} values are stored; {native_words(limit)}",
        "values would be stored that are not the first ones, or another prefix would be wrong",
        NUMBERS,
    )


def golden(bench: Bench) -> Check:
    """PyTorch's codes and scales of the export, met again on this machine."""
    record, dims = bench.model.golden, bench.model.dims
    limit = LIMITS[bench.precision].sampled(dims * sum(n for n, _, _ in parity.GOLDEN_SIZES))
    must = f"{limit_words(limit, False)}, scales within {SCALE_ERROR[bench.precision]:.0e}"
    name, why = "golden outputs", "this file or this ONNX Runtime gives other codes than PyTorch gave at export"
    try:
        cases = [inputs_of(*size) for size in parity.GOLDEN_SIZES]
        if record["cases"] != [list(size) for size in parity.GOLDEN_SIZES]:
            return Check(name, False, f"a record of the cases {record['cases']}", f"{parity.GOLDEN_SIZES}", why)
        if parity.digest_of(cases) != record["inputs_sha256"]:
            return Check(name, False, "a record of other inputs", "its inputs' digest", why)
        scale = np.frombuffer(base64.b64decode(record["scales"], validate=True), "<f4")
        codes = np.frombuffer(base64.b64decode(record["codes"], validate=True), np.int8)
        codes = codes.reshape(sum(n for n, _, _ in parity.GOLDEN_SIZES), dims)
        if scale.shape != codes.shape[:1] or not np.isfinite(scale).all() or scale.min() <= 0:
            return Check(name, False, f"a record of {len(scale)} scales", f"{len(codes)}, above 0", why)
    except (KeyError, TypeError, ValueError, binascii.Error) as e:
        return Check(name, False, f"a record that cannot be read: {e}", "a record", why)
    seen = joined([bench.run(case) for case in cases])
    meant, got = (Outputs(c, s, dequantise(c, s)) for c, s in ((codes, scale), (seen.codes, seen.scale)))
    far = distance([got], [meant])
    off = float(np.abs(seen.scale / scale - 1).max())
    # The values are those of codes, so their error is half a step where the codes are right.
    ok = dataclasses.replace(far, max_abs_error=0.0, cosine=max(far.cosine, limit.cosine)).keeps(limit)
    ok = ok and off <= SCALE_ERROR[bench.precision]
    if bench.precision == "int8":
        least = min(limit.cosine, 1.0)
        told = bench.model.parity.get("cosine")
        if isinstance(told, float):
            least = max(least, 1 - GOLDEN_ANGLE[0] * (1 - told) - GOLDEN_ANGLE[1])
        ok = ok and far.cosine >= least
        must += f"; cosine of the codes at least {least:.6f}"
    return Check(name, ok, f"{words_of(far, False)}, scales within {off:.1e}", must, why, NUMBERS)


def days(bench: Bench) -> Check:
    """One pixel on every day of a leap year, optical and radar apart: each day counts, and as it should."""
    faults: list[str] = []
    shown = range(1, 367) if bench.full else DAYS
    steps, parts, slow_parts = [], [], []
    for sensor in ("s2", "s1"):
        case = {name: np.repeat(array, 366, axis=0) for name, array in inputs_of(1, 1, 1).items()}
        case[f"{sensor}_doy"][:, 0] = np.arange(1, 367)
        run = bench.run(case)
        rms = float(np.sqrt(np.mean(run.embedding.astype(np.float64) ** 2))) or 1.0
        step = np.abs(np.diff(run.embedding.astype(np.float64), axis=0)).max(1) / rms
        steps.append(float(step.min()))
        if not step.min() >= LEAST_MOVEMENT:
            faults.append(f"{sensor} days {step.argmin() + 1} and {step.argmin() + 2} are alike")
        rows = np.array(shown) - 1
        parts.append(Outputs(run.codes[rows], run.scale[rows], run.embedding[rows]))
        slow_parts.append(bench.slow({name: array[rows] for name, array in case.items()}))
    far = distance(parts, slow_parts)
    limit = UNUSUAL[bench.precision].sampled(far.codes)
    measured = "; ".join([*faults, f"least step {min(steps):.1e} of rms; {len(shown)} days: {words_of(far)}"])
    must = f"each day at least {LEAST_MOVEMENT:.0e} of rms from the next; {limit_words(limit)}"
    why = "observations would be put on other days, or the last day of a leap year on the day before"
    return Check("days", not faults and far.keeps(limit), measured, must, why, NUMBERS)


def absent_rows(bench: Bench) -> Check:
    """Rows of day 0 are zeros after standardisation, whatever stands in them: some of a series, and all of it."""
    full = inputs_of(16, 8, 8)
    full["s1_doy"][:8] = 0  # pixels without radar
    full["s2_doy"][4:12, ::3] = 0
    bare = {name: array.copy() for name, array in full.items()}
    for sensor, channels in (("s2", ("s2",)), ("s1", ("s1", "s1_orbit"))):
        for name in channels:
            bare[name][full[f"{sensor}_doy"] == 0] = 0
    got, plain = bench.run(full), bench.run(bare)
    same, far = np.array_equal(got.embedding, plain.embedding), distance([got], [bench.slow(full)])
    why = "pixels without radar would get codes from whatever stands in for it"
    found = f"numbers of day 0 {'ignored' if same else 'USED'}; {words_of(far)}"
    limit = UNUSUAL[bench.precision].sampled(far.codes)
    must = f"ignored; {limit_words(limit)}"
    return Check("absent rows", same and far.keeps(limit), found, must, why, NUMBERS)


def rare(bench: Bench) -> Check:
    """Pixels as imagery has them seldom, others than those by which int8 ranges were measured."""
    cases = [rare_inputs(seed) for seed in (range(1, 9) if bench.full else (1,))]
    far = distance([bench.run(case) for case in cases], [bench.slow(case) for case in cases])
    limit = UNUSUAL[bench.precision].sampled(far.codes)
    why = "snow, saturation or a strong echo would become the embedding of something else"
    return Check("rare pixels", far.keeps(limit), words_of(far), limit_words(limit), why, NUMBERS)


def extremes(bench: Bench) -> Check:
    """The whole range of each input's type: least and largest numbers, zeros, first and last day, and noise."""
    random, case = np.random.RandomState(0), inputs_of(32, 8, 8)
    shape2, shape1 = case["s2"].shape, case["s1"].shape
    case["s2"] = random.randint(0, 65_536, shape2).astype(np.uint16)
    case["s1"] = random.randint(-32_768, 32_768, shape1).astype(np.int16)
    corners = (
        (0, 0, 1),
        (65_535, 32_767, 366),
        (0, -32_768, 366),
        (65_535, -32_768, 1),
        (0, 0, 0),
        (10_001, 0, 366),
    )
    for i, (s2, s1, day) in enumerate(corners):
        for name, value in (("s2", s2), ("s1", s1), ("s2_doy", day), ("s1_doy", day)):
            case[name][i] = value
    run = bench.run(case)
    good = np.isfinite(run.embedding).all(1) & np.isfinite(run.scale) & (run.scale > 0)
    far = distance([run], [bench.slow(case)])
    limit = EXTREME[bench.precision].sampled(far.codes)
    ok, must = bool(good.all()) and far.keeps(limit), f"finite, scale above 0; {limit_words(limit)}"
    found = "all finite" if good.all() else f"{int((~good).sum())} of {len(good)} pixels are not finite"
    why = "a bright cloud or a dark lake would become an embedding of nothing"
    return Check("extremes", ok, f"{found}; {words_of(far)}", must, why, NUMBERS)


def ranges(bench: Bench) -> Check:
    """The ranges of int8 inputs, measured again: on the same pixels, in a float32 graph of the stored weights."""
    model, wide = bench.model, dataclasses.replace(bench.model.variant, precision="fp32")
    inputs = layer_inputs(bench.weights, model.encoder, model.profile, wide)
    graph = build(bench.weights, bench.arrays["day_table"], model.encoder, model.profile, wide)
    stored = ranges_of(bench.arrays, model.encoder)
    names = sorted({inputs[layer] for layer in stored})
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    probe = helper.make_model(graph, ir_version=bench.proto.ir_version, opset_imports=bench.proto.opset_import)
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


CHECKS: tuple[tuple[str, str, Callable[[Bench], Check]], ...] = (
    ("parity with NumPy", NUMBERS, parity_with_numpy),
    ("whole output", NUMBERS, whole_output),
    ("golden outputs", NUMBERS, golden),
    ("tokens", NUMBERS, lambda bench: gate_tokens.tokens(bench.proto, bench.model)),
    ("days", NUMBERS, days),
    ("absent rows", NUMBERS, absent_rows),
    ("rare pixels", NUMBERS, rare),
    ("extremes", NUMBERS, extremes),
    ("quantiser", NUMBERS, lambda bench: gate_quantiser.quantiser(bench.model, bench.runs)),
    ("quantiser edges", NUMBERS, lambda bench: gate_quantiser.edges(bench.proto, bench.model)),
    ("float16 range", NUMBERS, lambda bench: gate_half.half_range(bench.proto)),
    ("int8 ranges", NUMBERS, ranges),
    ("order of observations", ROBUSTNESS, gate_robustness.order),
    ("other neighbours", ROBUSTNESS, gate_robustness.neighbours),
    ("order of pixels", ROBUSTNESS, gate_robustness.pixels_reversed),
    ("one pixel at a time", ROBUSTNESS, gate_robustness.one_at_a_time),
    ("optimisation levels", ROBUSTNESS, gate_robustness.levels),
    ("two threads", ROBUSTNESS, gate_robustness.threads),
    ("same bytes twice", ROBUSTNESS, gate_robustness.again),
    ("placement", PLACEMENT, lambda b: placement(b.content, b.model.variant, b.cases[SMALL_CASE])),
)
OF_PRECISION = {"float16 range": "fp16", "int8 ranges": "int8"}


def run_checks(bench: Bench) -> Iterator[Check]:
    """Every check, each a failed one where the file does not run for it."""
    for name, group, check in CHECKS:
        if bench.precision != OF_PRECISION.get(name, bench.precision):
            continue  # other files have nothing of the kind
        try:
            yield check(bench)
        except RunError as e:
            yield Check(name, False, str(e), "it runs", "a worker could not encode with it", group)
