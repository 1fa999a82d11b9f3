"""Gate: every check that a model file must pass before a planet is encoded with it."""

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, checker, numpy_helper, shape_inference

from model import parity, reference
from model.errors import BadInput
from model.extras import need
from model.graph import constants_of
from model.modelfile import IR_VERSION, OPSET, ModelFile, edit_faults, parse_model, read_model, signature_faults
from model.parity import Distance, Inputs, Outputs, Session, distance, inputs_of
from model.profile import Profile
from model.quantise import NO_DATA, quantise
from model.weights import Tensors, check_tensors, tensor_shapes, weights_sha256

CONTROL_FLOW = ("If", "Loop", "Scan")  # a branch may freeze an axis, and CUDA graphs capture none of them
DAY_TABLE_ERROR = 1e-4  # float32 rounds the angle of day 366 by up to 3e-5, and two libraries may round it apart
FULL_SIZES = ((256, 40, 40), (128, 64, 48), (16, 128, 104), (3, 256, 256), (257, 9, 31))
FULL_SEEDS = (1, 2, 3)  # further inputs for every size


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about a model file.

    Attributes:
      name: what was checked.
      ok: whether it holds.
      measured: what was found.
      limit: what it must be.
      why: what a failure would mean.
    """

    name: str
    ok: bool
    measured: str
    limit: str
    why: str


@dataclasses.dataclass(frozen=True)
class GateReport:
    """Every check of one file.

    Attributes:
      model: the file; its name, digests and records.
      checks: in the order they were made.
      distance: from the NumPy reference, None where the file could not be run.
    """

    model: ModelFile
    checks: tuple[Check, ...]
    distance: Distance | None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def gate(path: str | Path, against: str | Path | None = None, full: bool = False) -> GateReport:
    """Checks a model file; needs PyTorch only for `against`.

    Args:
      against: the checkpoint that it was made from: weights must be equal, outputs those of PyTorch.
      full: more sizes and more inputs, minutes rather than seconds for a large encoder.

    Raises:
      BadInput: no such file, not a model file of ours, or a checkpoint that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no model file at {path}")
    checkpoint = None if against is None else _load(against)
    content = path.read_bytes()
    proto = parse_model(content, path)
    model = read_model(proto, content, path)
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    checks = [*_static_checks(proto, model, tensors)]
    if checkpoint is not None:
        checks.append(_same_weights(checkpoint.tensors, tensors))
    measured = None
    if all(check.ok for check in checks if check.name in NEEDED_TO_RUN):
        try:
            bench = _Bench(content, model, tensors, full)
            measured = bench.distance
            checks += bench.checks()
            if checkpoint is not None:
                checks.append(bench.against_torch(checkpoint))
        except parity.RunError as e:
            checks.append(Check("runs", False, str(e), "every size runs", "a worker could not encode with it"))
    return GateReport(model, tuple(checks), measured)


NEEDED_TO_RUN = ("onnx checker", "signature", "weights")


def _load(checkpoint: str | Path) -> Any:
    need("torch", "model gate --against")
    from model.checkpoints import load_v2

    return load_v2(checkpoint)


def _static_checks(proto: ModelProto, model: ModelFile, tensors: dict[str, npt.NDArray[Any]]) -> Iterator[Check]:
    yield _checker(proto)
    domains = sorted({part.domain or "ai.onnx" for part in (*proto.opset_import, *proto.graph.node)})
    flow = sorted({n.op_type for n in proto.graph.node} & set(CONTROL_FLOW))
    yield Check(
        "versions and operators",
        (model.ir_version, model.opset, domains, flow) == (IR_VERSION, OPSET, ["ai.onnx"], []) and not proto.functions,
        f"IR {model.ir_version}, opset {model.opset}, {', '.join([*domains, *flow])}, {len(proto.functions)} functions",
        f"IR {IR_VERSION}, opset {OPSET}, ai.onnx only, no {', '.join(CONTROL_FLOW)}",
        "some ONNX Runtime or provider would not load it",
    )
    yield _faults("signature", signature_faults(proto, model.profile), "names, types and axes of the contract")
    yield _faults("graph digest", edit_faults(proto, model), "nodes and initialisers are those of the export")
    wrong = [
        name
        for name, array in constants_of(model.profile).items()
        if name not in tensors or not np.array_equal(tensors[name], array)
    ]
    yield Check(
        "constants",
        not wrong,
        f"{', '.join(wrong)} differ" if wrong else "all equal",
        "the graph's constants are the profile's",
        "d-pixels made by the profile would be normalised by other numbers",
    )
    yield _weights(model, tensors)
    yield _day_table(model, tensors)


def _checker(proto: ModelProto) -> Check:
    found = "passed"
    try:
        checker.check_model(proto, full_check=True)
        shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError) as e:
        found = str(e).strip().splitlines()[0]
    why = "a runtime could refuse it or read it another way"
    return Check("onnx checker", found == "passed", found, "full check, strict shape inference", why)


def _faults(name: str, faults: list[str], limit: str) -> Check:
    why = "the file is not what its record says"
    return Check(name, not faults, "; ".join(faults) or "as it should be", limit, why)


def _weights(model: ModelFile, tensors: dict[str, npt.NDArray[Any]]) -> Check:
    names = tensor_shapes(model.encoder)
    found = {name: tensors[name] for name in names if name in tensors}
    try:
        check_tensors(found, model.encoder)
        digest = weights_sha256(found)
        measured = digest[:16]
    except BadInput as e:
        digest, measured = "", str(e)
    limit = f"complete, finite, sha256 {model.weights_sha256[:16]}"
    return Check("weights", digest == model.weights_sha256, measured, limit, "they are not those that were exported")


def _day_table(model: ModelFile, tensors: dict[str, npt.NDArray[Any]]) -> Check:
    d = model.encoder.width
    angle = np.arange(367)[:, None] * 10_000.0 ** (-np.arange(0, d, 2) / d)
    exact = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(367, d)
    table = tensors.get("day_table", np.empty(0))
    error = float(np.abs(table - exact).max()) if table.shape == exact.shape else float("inf")
    why = "observations would be put on other days"
    return Check("day table", error <= DAY_TABLE_ERROR, f"error {error:.1e}", f"at most {DAY_TABLE_ERROR:.0e}", why)


def _same_weights(trained: Tensors, tensors: dict[str, npt.NDArray[Any]]) -> Check:
    other = [n for n, t in trained.items() if n not in tensors or not np.array_equal(t, tensors[n])]
    measured = f"{len(other)} of {len(trained)} tensors differ" + (f", first {other[0]}" if other else "")
    why = "it was made from another checkpoint"
    return Check("checkpoint's weights", not other, measured, "equal in every bit", why)


class _Bench:
    """The checks that run the file, over inputs that are made once."""

    def __init__(self, content: bytes, model: ModelFile, tensors: dict[str, npt.NDArray[Any]], full: bool) -> None:
        self.content, self.model, self.tensors, self.full = content, model, tensors, full
        self.session = Session(content)
        self.cases = [inputs_of(*size) for size in parity.SIZES]
        if full:
            self.cases += [inputs_of(*size, seed=seed) for size in parity.SIZES for seed in FULL_SEEDS]
            self.cases += [inputs_of(*size) for size in FULL_SIZES]
        self.runs = [self.session.run(case) for case in self.cases]
        self.distance = distance(self.runs, (self.slow(case) for case in self.cases))

    def slow(self, case: Inputs) -> Outputs:
        return reference.encode(self.tensors, self.model.encoder, self.model.profile, case)

    def checks(self) -> Iterator[Check]:
        yield _near("parity with NumPy", self.distance, "the graph computes something else than a v2 student")
        yield self.golden()
        yield self.absent_rows()
        yield self.extremes()
        yield self.quantiser()
        yield self.unmoved("order of observations", _shuffled, "this family's pooling knows no order")
        yield self.unmoved("pixels apart", _doubled, "a pixel's code would depend on its neighbours")
        yield self.settings("unoptimised", Session(self.content, optimised=False))
        yield self.settings("two threads", Session(self.content, threads=2))

    def golden(self) -> Check:
        record = self.model.golden
        why = "this machine or this ONNX Runtime gives other codes than PyTorch gave at export"
        try:
            cases = [inputs_of(*size) for size in record["cases"]]
            if parity.digest_of(cases) != record["inputs_sha256"]:
                return Check("golden outputs", False, "record of other inputs", "its inputs' digest", why)
            scale = np.frombuffer(base64.b64decode(record["scales"]), "<f4")
            codes = np.frombuffer(base64.b64decode(record["codes"]), np.int8).reshape(len(scale), self.model.dims)
        except (KeyError, TypeError, ValueError, binascii.Error) as e:
            return Check("golden outputs", False, f"record cannot be read: {e}", "a record", why)
        runs = [self.session.run(case) for case in cases]
        seen = Outputs(*(np.concatenate([getattr(r, f) for r in runs]) for f in ("codes", "scale", "embedding")))
        if seen.codes.shape != codes.shape:
            return Check("golden outputs", False, f"{seen.codes.shape} codes", f"{codes.shape} codes", why)
        steps = np.abs(seen.codes.astype(int) - codes)
        differing, scales = int((steps > 0).sum()), float(np.abs(seen.scale / scale - 1).max())
        ok = differing <= parity.allowed_codes(codes.size) and steps.max() <= parity.MAX_CODE_STEP
        ok = ok and scales <= parity.MAX_ERROR_PER_RMS
        measured = f"{differing} of {codes.size} codes differ, step {steps.max()}, scales within {scales:.1e}"
        return Check("golden outputs", ok, measured, _limit(), why)

    def absent_rows(self) -> Check:
        full = inputs_of(16, 8, 1)
        full["s1_doy"][:] = 0
        bare = {**full, "s1": np.zeros_like(full["s1"]), "s1_orbit": np.zeros_like(full["s1_orbit"])}
        got, plain = self.session.run(full), self.session.run(bare)
        same = np.array_equal(got.embedding, plain.embedding)
        measured = distance([got], [self.slow(full)])
        why = "pixels without radar would get codes from whatever stands in for it"
        found = f"numbers of day 0 {'ignored' if same else 'used'}; {_words(measured)}"
        return Check("absent rows", same and measured.ok, found, f"ignored; {_limit()}", why)

    def extremes(self) -> Check:
        """Least and largest numbers of each input's type, zeros, and the first and last day."""
        faults = []
        for s2, s1, day in ((0, 0, 1), (65_535, 32_767, 366), (0, -32_768, 366), (65_535, -32_768, 1), (0, 0, 0)):
            case = inputs_of(4, 8, 8)
            for name, value in (("s2", s2), ("s1", s1), ("s2_doy", day), ("s1_doy", day)):
                case[name][:] = value
            run = self.session.run(case)
            if not (np.isfinite(run.embedding).all() and np.isfinite(run.scale).all() and run.scale.min() > 0):
                faults.append(f"not finite at s2 {s2}, s1 {s1}, day {day}")
        why = "a bright cloud or a dark lake would become an embedding of nothing"
        return Check("extremes", not faults, "; ".join(faults) or "all finite", "finite, scale above 0", why)

    def quantiser(self) -> Check:
        lowest, wrong, total = 0, 0, 0
        for run in self.runs:
            codes, scale = quantise(run.embedding)
            wrong += int((codes != run.codes).sum() + (scale != run.scale).sum())
            total += codes.size + scale.size
            lowest = min(lowest, int(run.codes.min()))
        measured = f"{wrong} of {total} codes and scales differ, least code {lowest}"
        limit = f"none differ, none is {NO_DATA}"
        why = f"codes would not be rint(value / scale), or would mean 'no data' ({NO_DATA})"
        return Check("quantiser", not wrong and lowest > NO_DATA, measured, limit, why)

    def unmoved(self, name: str, change: Callable[[Inputs], Inputs], why: str) -> Check:
        pixels = [len(run.codes) for run in self.runs]
        moved = [_first(self.session.run(change(case)), n) for case, n in zip(self.cases, pixels, strict=True)]
        return _near(name, distance(moved, self.runs), why)

    def settings(self, name: str, session: Session) -> Check:
        other = distance((session.run(case) for case in self.cases), self.runs)
        return _near(name, other, "codes would depend on a worker's settings")

    def against_torch(self, checkpoint: Any) -> Check:
        from model.encoders import encoder_of
        from model.export import run_torch

        why = "the export is not the encoder that was trained"
        if checkpoint.sizes != self.model.encoder:
            return Check("parity with PyTorch", False, str(self.model.encoder), str(checkpoint.sizes), why)
        profile: Profile = checkpoint.record.profile if checkpoint.record else self.model.profile
        encoder = encoder_of(checkpoint.tensors, checkpoint.sizes, profile)
        return _near("parity with PyTorch", distance(self.runs, (run_torch(encoder, c) for c in self.cases)), why)


def _shuffled(case: Inputs) -> Inputs:
    """Observations in another order, with their days and orbits."""
    random = np.random.RandomState(0)
    order = {s: random.permutation(case[f"{s}_doy"].shape[1]) for s in ("s2", "s1")}
    return {name: array[:, order[name[:2]]] for name, array in case.items()}


def _doubled(case: Inputs) -> Inputs:
    """The same pixels, followed by others: themselves in reverse."""
    return {name: np.concatenate([array, array[::-1]]) for name, array in case.items()}


def _first(run: Outputs, n: int) -> Outputs:
    return Outputs(run.codes[:n], run.scale[:n], run.embedding[:n])


def _near(name: str, measured: Distance, why: str) -> Check:
    return Check(name, measured.ok, _words(measured), _limit(), why)


def _words(measured: Distance) -> str:
    return (
        f"error {measured.error_per_rms:.1e} of rms, {measured.differing_codes} of {measured.codes} codes differ, "
        f"step {measured.max_code_step}"
    )


def _limit() -> str:
    return (
        f"error {parity.MAX_ERROR_PER_RMS:.0e} of rms, {parity.MAX_DIFFERING_SHARE:.2%} of codes (or "
        f"{parity.FEW_CODES}), step {parity.MAX_CODE_STEP}"
    )
