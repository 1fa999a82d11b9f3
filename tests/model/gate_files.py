"""Model files that pass the gate, copies of them under good digests, and what the gate says of a file."""

from pathlib import Path

import onnx
from onnx import helper, numpy_helper
from small_encoders import SMALL, family_of_case, tensors_of

from model import modelfile
from model.checkpoints import Checkpoint
from model.errors import BadInput
from model.export import export
from model.families import profile_for
from model.gate import gate
from model.gate_static import static_checks
from model.modelfile import graph_digest, open_model
from model.stored import dequantised, initialisers
from model.weights import tensor_shapes, weights_sha256

SHIPPED = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"
READ = {
    *("onnx checker", "versions", "operators", "graph digest", "records", "weights", "nodes"),
    *("signature", "profile", "variant", "constants", "inner constants", "element types", "day table"),
}
RUN = {
    *(
        "parity with NumPy",
        "whole output",
        "golden outputs",
        "tokens",
        "days",
        "absent rows",
        "rare pixels",
        "extremes",
    ),
    *("quantiser", "quantiser edges", "order of observations", "other neighbours", "order of pixels"),
    *("one pixel at a time", "optimisation levels", "two threads", "same bytes twice", "placement"),
}
OF_PRECISION = {"v2 fp16": {"float16 range"}, "v2 int8": {"int8 ranges"}}
FORMS = {
    "early": ("v1.0-early", None, "fp32", "any"),
    "own GRU": ("v1.1-mpc", 7, "fp32", "any"),
    "own GRU as GRU": ("v1.1-mpc", 7, "fp32", "cpu"),
    "v2": ("v2", 10, "fp32", "any"),
    "v2 fp16": ("v2", 10, "fp16", "any"),
    "v2 int8": ("v2", None, "int8", "cpu"),
    "own GRU int8": ("v1.1-mpc", 7, "int8", "cpu"),
    "QK-norm": ("v2 with QK-norm", None, "fp32", "any"),
}


def failed(path, **options):
    return {check.name for check in gate(path, **options).checks if not check.ok}


def failed_unrun(path):
    """Of the checks that read the file; the others take most of the time."""
    path, content = Path(path), Path(path).read_bytes()
    proto = modelfile.parse_model(content, path)
    model = modelfile.read_model(proto, content, path)
    try:
        arrays = initialisers(proto)
        weights = dequantised(arrays, model.encoder, model.variant)
    except BadInput as e:
        arrays, weights = {}, e
    return {check.name for check in static_checks(proto, model, arrays, weights) if not check.ok}


def check_of(path, name):
    return next(check for check in gate(path).checks if check.name == name)


def sound_files(folder):
    """A function that gives the path of a file that passes for a key of `FORMS`; each is made once, in `folder`."""
    made = {}

    def path_of(form):
        if form not in made:
            case, dims, precision, target = FORMS[form]
            sizes, family = SMALL[case], family_of_case(case)
            profile = profile_for(family, sizes.native_dims, dims)
            origin = {"kind": "import", "family": family}
            checkpoint = Checkpoint(tensors_of(sizes, 2), sizes, {})
            made[form] = folder / f"{len(made)}.onnx"
            export(checkpoint, profile, family, origin, made[form], precision, target)
        return made[form]

    return path_of


def signed(tmp_path, source, change):
    """A copy with a fault in it, and every digest made good again."""
    model, opened = onnx.load(source), open_model(source)
    change(model)
    props = {p.key: p.value for p in model.metadata_props}
    arrays = {t.name: t for t in model.graph.initializer}
    names = tensor_shapes(opened.encoder)
    if opened.variant.precision == "fp32" and all(n in arrays for n in names):
        old = props["weights_sha256"]
        props["weights_sha256"] = weights_sha256({name: numpy_helper.to_array(arrays[name]) for name in names})
        props["name"] = props["name"].replace(old[:8], props["weights_sha256"][:8])
    props["graph_digest"] = graph_digest(model)
    props["records_digest"] = modelfile.records_digest(props)
    helper.set_model_props(model, props)
    path = tmp_path / "signed.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
