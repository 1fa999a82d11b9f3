"""Gate robustness: what must not change the codes of a model file, and what must."""

import dataclasses

import numpy as np

from model import parity
from model.gate_bench import SMALL_CASE, Bench, joined, limit_words, shuffled, words_of
from model.gate_report import ROBUSTNESS, Check
from model.limits import LEAST_MOVEMENT, LIMITS, MOVEMENT_SHARE, NEIGHBOURS, SAME_FILE, Limits
from model.parity import Distance, Inputs, Outputs, Session, distance
from model.weights import ATTENTION

BASE_LEVEL = "all"  # what workers run at


def order(bench: Bench) -> Check:
    """Attention knows no order of the rows; before a GRU each sensor's order must count."""
    name, limit = "order of observations", SAME_FILE[bench.precision]
    if bench.model.encoder.pooling == ATTENTION:
        far = bench.apart(lambda case: shuffled(case, ("s2", "s1")))
        return _near(name, far, limit, f"shuffled: {words_of(far)}", "this family's pooling knows no order")
    case, run, slow = bench.cases[SMALL_CASE], bench.runs[SMALL_CASE], bench.slow_runs[SMALL_CASE]
    faults, found = [], []
    for sensor in ("s2", "s1"):
        other = shuffled(case, (sensor,))
        moved = distance([bench.run(other)], [run]).error_per_rms
        meant = distance([bench.slow(other)], [slow]).error_per_rms
        found.append(f"{sensor} by {moved:.1e} of rms, the reference by {meant:.1e}")
        if not moved >= max(LEAST_MOVEMENT, MOVEMENT_SHARE * meant):
            faults.append(f"{sensor} hardly moves")
    other = shuffled(case, ("s2", "s1"))
    far = distance([bench.run(other)], [bench.slow(other)])
    limit = LIMITS[bench.precision].sampled(far.codes)
    return Check(
        name,
        not faults and far.keeps(limit),
        "; ".join([*faults, "shuffling moves " + ", ".join(found), f"shuffled: {words_of(far)}"]),
        f"each sensor by {LEAST_MOVEMENT:.0e} of rms, {MOVEMENT_SHARE:.0%} of the reference; {limit_words(limit)}",
        "its GRU would be without effect, or read the rows in another order than theirs",
        ROBUSTNESS,
    )


def neighbours(bench: Bench) -> Check:
    why = "a pixel's code would depend on its neighbours"
    far = bench.apart(_doubled, lambda run, n: _rows(run, slice(n)))
    return _near("other neighbours", far, NEIGHBOURS[bench.precision], words_of(far), why)


def pixels_reversed(bench: Bench) -> Check:
    why = "a pixel's code would depend on its place in the batch"
    far = bench.apart(_reversed, lambda run, n: _rows(run, slice(None, None, -1)))
    return _near("order of pixels", far, NEIGHBOURS[bench.precision], words_of(far), why)


def one_at_a_time(bench: Bench) -> Check:
    count = len(parity.SIZES)  # not the large cases of `full`
    alone = [
        joined([bench.run({name: array[i : i + 1] for name, array in case.items()}) for i in range(len(case["s2"]))])
        for case in bench.cases[:count]
    ]
    far = distance(alone, bench.runs[:count])
    why = "a code would depend on how many pixels share its batch"
    return _near("one pixel at a time", far, NEIGHBOURS[bench.precision], words_of(far), why)


def levels(bench: Bench) -> Check:
    """Every optimisation level of ONNX Runtime; `full` adds one, two and four threads to each."""
    far: dict[str, Distance] = {}
    for level in parity.LEVELS:
        for threads in (1, 2, 4) if bench.full else (1,):
            if (level, threads) != (BASE_LEVEL, 1):
                session = Session(bench.content, threads, level)
                label = f"{level} on {threads} threads" if bench.full else level
                far[label] = distance((bench.run(case, session) for case in bench.cases), bench.runs)
    limit = SAME_FILE[bench.precision]
    words = "; ".join(f"{label}: {words_of(d)}" for label, d in far.items())
    why = "codes would depend on what a runtime makes of the graph"
    ok = all(d.keeps(limit) for d in far.values())
    return Check("optimisation levels", ok, words, limit_words(limit), why, ROBUSTNESS)


def threads(bench: Bench) -> Check:
    session = Session(bench.content, threads=2)
    far = distance((bench.run(case, session) for case in bench.cases), bench.runs)
    why = "codes would depend on a worker's settings"
    return _near("two threads", far, SAME_FILE[bench.precision], words_of(far), why)


def again(bench: Bench) -> Check:
    """A second run and a second session; what draws or remembers shows here."""
    second = Session(bench.content)
    faults = [
        f"{what} over {len(case['s2'])} pixels of {case['s2'].shape[1]} and {case['s1'].shape[1]} rows"
        for what, session in (("run", bench.session), ("session", second))
        for case, run in zip(bench.cases, bench.runs, strict=True)
        if not _equal(bench.run(case, session), run)
    ]
    measured = f"another {faults[0]} differs" if faults else f"{2 * len(bench.cases)} runs, equal in every bit"
    why = "the same revision would not be the same bytes"
    return Check("same bytes twice", not faults, measured, "equal in every bit", why, ROBUSTNESS)


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


def _near(name: str, far: Distance, limit: Limits, words: str, why: str) -> Check:
    return Check(name, far.keeps(limit), words, limit_words(limit), why, ROBUSTNESS)
