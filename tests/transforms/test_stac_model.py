"""The model's own item against the published schemas, and against the file that it describes."""

import copy
import functools
import math

import onnx
import pystac
import pystac.validation
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from small_encoders import SMALL, family_of_case, tensors_of
from stac_schemas import SCHEMAS, complaints, schema_documents

from model.families import profile_for
from model.modelfile import open_model
from model.stored import stored_tensors
from transforms.stac import to_json
from transforms.stac_model import model_item

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the published STAC schemas are not in ../shared")
FORMS = {
    "early": ("v1.0-early", "fp32", "any"),
    "own GRU": ("v1.1-mpc", "fp32", "any"),
    "v2 int8": ("v2", "int8", "cpu"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Key of `FORMS` -> path of a small model file."""
    from model.checkpoints import Checkpoint  # these take PyTorch
    from model.export import export

    @functools.cache
    def path_of(form):
        case, precision, target = FORMS[form]
        sizes, family = SMALL[case], family_of_case(case)
        origin, path = {"kind": "import", "family": family}, tmp_path_factory.mktemp("models") / "m.onnx"
        profile = profile_for(family, sizes.native_dims)
        export(Checkpoint(tensors_of(sizes, 2), sizes, {}), profile, family, origin, path, precision, target)
        return path

    return path_of


@needs_schemas
def test_the_shipped_model_s_item_satisfies_every_schema_that_it_declares(model):
    item = model_item(model)
    assert complaints(item) == []
    validator = JsonSchemaSTACValidator()
    validator.schema_cache = schema_documents()
    assert len(pystac.validation.validate_dict(copy.deepcopy(item), validator=validator)) == 4
    assert pystac.Item.from_dict(item).assets["model"].href == f"./{model.sha256}.onnx"


@needs_schemas
@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_every_pooling_and_precision_has_a_valid_item(sound, form):
    assert complaints(model_item(open_model(sound(form)))) == []


@needs_schemas
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("properties", "mlm:name"), "1"),
        (("properties", "mlm:tasks"), ["embedding"]),
        (("properties", "mlm:total_parameters"), 1.5),
        (("properties", "mlm:input", 0, "input", "dim_order"), ["batch", "time", "colour"]),
        (("properties", "mlm:output", 0, "result", "data_type"), "code"),
        (("assets", "model", "mlm:artifact_type"), ""),
        (("assets", "model", "roles"), ["data"]),
    ],
)
def test_the_schemas_complain_of_a_spoilt_model_item(model, path, wrong):
    spoilt = copy.deepcopy(model_item(model))
    at = spoilt
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = wrong
    assert complaints(spoilt)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_inputs_and_outputs_are_those_of_the_file(sound, form):
    path = sound(form)
    opened, proto = open_model(path), onnx.load(path)
    said = model_item(opened)["properties"]
    held = stored_tensors(proto, opened.encoder, opened.variant)
    assert said["mlm:total_parameters"] == sum(math.prod(t.shape) for t in held.values())
    for key, part, values in (("mlm:input", "input", proto.graph.input), ("mlm:output", "result", proto.graph.output)):
        assert [v["name"] for v in said[key]] == [v.name for v in values]
        for value, meant in zip(said[key], values, strict=True):
            tensor = meant.type.tensor_type
            assert value[part]["shape"] == [d.dim_value or -1 for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            assert value[part]["data_type"] == str(dtype)
    assert [len(v["bands"]) for v in said["mlm:input"]] == [10, 0, 2, 0, 0]


def test_weights_of_somebody_else_are_pretrained_and_those_made_here_are_not(model, sound):
    assert model.origin["kind"] == "training"
    own = model_item(model)["properties"]
    assert own["mlm:pretrained"] is False
    assert own["mlm:pretrained_source"] is None
    theirs = model_item(open_model(sound("own GRU")))["properties"]
    assert theirs["mlm:pretrained"] is True
    assert "mlm:pretrained_source" not in theirs  # the file does not know it


def test_equal_files_give_equal_bytes_with_size_and_checksum(model):
    asset = model_item(model)["assets"]["model"]
    assert asset["file:checksum"] == f"1220{model.sha256}"
    assert asset["file:size"] == model.path.stat().st_size
    assert to_json(model_item(model)) == to_json(model_item(open_model(model.path)))
