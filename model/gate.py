"""Gate: every check that a model file must pass before a planet is encoded with it."""

from pathlib import Path

from model import gate_against, parity
from model.errors import BadInput
from model.gate_bench import Bench
from model.gate_report import GROUPS, NUMBERS, Check, GateReport
from model.gate_runs import run_checks
from model.gate_static import NEEDED_TO_RUN, static_checks
from model.modelfile import parse_model, read_model
from model.stored import Array, dequantised, initialisers
from model.weights import Tensors

__all__ = ["Check", "GateReport", "gate"]


def gate(path: str | Path, against: str | Path | None = None, full: bool = False) -> GateReport:
    """Checks a model file; needs PyTorch only for `against`.

    Args:
      against: the checkpoint that it was made from: weights must be equal, outputs those of PyTorch.
      full: more sizes, inputs and settings: minutes rather than seconds for a large encoder.

    Raises:
      BadInput: no such file, not a model file of ours, or a checkpoint that cannot be read as one of its family.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no model file at {path}")
    content = path.read_bytes()
    proto = parse_model(content, path)
    model = read_model(proto, content, path)
    checkpoint = None if against is None else gate_against.load(against, model)
    arrays: dict[str, Array] = {}
    weights: Tensors | BadInput
    try:
        arrays = initialisers(proto)
        weights = dequantised(arrays, model.encoder, model.variant)
    except BadInput as e:
        weights = e
    checks = [*static_checks(proto, model, arrays, weights)]
    if checkpoint is not None:
        checks += gate_against.static_checks(checkpoint, model, arrays)
    hindered = [check.name for check in checks if not check.ok and check.name in NEEDED_TO_RUN]
    distance = None
    if hindered or isinstance(weights, BadInput):
        why = "nothing is run that could do something else than encode"
        checks.append(Check("runs", False, f"not run: {', '.join(hindered)} failed", "it runs", why, NUMBERS))
    else:
        try:
            bench = Bench(content, proto, model, arrays, weights, full)
            distance = bench.distance
            checks += run_checks(bench)
            if checkpoint is not None:
                checks += gate_against.run_checks(checkpoint, bench)
        except parity.RunError as e:
            checks.append(Check("runs", False, str(e), "every size runs", "a worker could not encode with it", NUMBERS))
    checks.sort(key=lambda check: list(GROUPS).index(check.group))
    return GateReport(model, tuple(checks), distance)
