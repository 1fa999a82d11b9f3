import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.describe import describe
from model.errors import BadInput
from model.modelfile import VERSION, graph_digest, open_model
from model.variant import Variant
from model.weights import weights_sha256
from pipeline.demo import untrained

SHIPPED = Path(__file__).parents[2] / "pipeline" / "demo" / "model.onnx"


def rewritten(tmp_path, change):
    """The shipped model, changed."""
    model = onnx.load(SHIPPED)
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def with_props(model, **props):
    helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, **props})


def test_the_shipped_model_opens_and_says_that_it_is_for_demonstration():
    model = open_model(SHIPPED)
    assert model.name.startswith("demo-")
    assert model.name.endswith(model.weights_sha256[:8])
    assert model.origin["kind"] == "training"
    assert "for demonstrations" in model.profile.notes
    assert (model.ir_version, model.opset, model.dims) == (10, 20, 128)
    assert model.size_bytes == SHIPPED.stat().st_size < 500_000


def test_opening_needs_neither_torch_nor_beam():
    code = f"import sys; from model.modelfile import open_model; open_model({str(SHIPPED)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "apache_beam", "onnxruntime"} & set(loaded)


def test_the_description_names_what_a_person_asks_for():
    model = open_model(SHIPPED)
    text = describe(model)
    words = ("128 int8 codes", "sentinel-1-rtc@planetary-computer", "B04 B02 B03", "opset 20", "for demonstrations")
    for part in (model.name, *words):
        assert part in text


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(BadInput, match=r"no model file at .*m\.onnx; make one with `tessera-beam model import"):
        open_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"a text file", b"\x08\x0a"])
def test_what_is_not_onnx_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.onnx is not an ONNX file"):
        open_model(path)


def test_somebody_elses_onnx_is_refused(tmp_path):
    with pytest.raises(BadInput, match="not a tessera-beam model; make one with"):
        open_model(rewritten(tmp_path, lambda m: m.ClearField("metadata_props")))


def test_a_newer_format_is_refused_by_number(tmp_path):
    newer = json.dumps({"format": "tessera-beam/model", "version": VERSION + 1})
    with pytest.raises(BadInput, match=f"model file version {VERSION + 1}, this release reads 1 to {VERSION}"):
        open_model(rewritten(tmp_path, lambda m: with_props(m, tessera_beam=newer)))


def test_a_newer_profile_is_refused_by_number(tmp_path):
    def newer(model):
        profile = json.loads(next(p.value for p in model.metadata_props if p.key == "profile"))
        with_props(model, profile=json.dumps({**profile, "version": 99}))

    with pytest.raises(BadInput, match=r"m\.onnx: profile version 99"):
        open_model(rewritten(tmp_path, newer))


@pytest.mark.parametrize("key", ["profile", "origin", "encoder", "graph_digest", "name"])
def test_a_missing_record_is_named(tmp_path, key):
    def cut(model):
        kept = {p.key: p.value for p in model.metadata_props if p.key != key}
        model.ClearField("metadata_props")
        helper.set_model_props(model, kept)

    with pytest.raises(BadInput, match=f"has no {key} in its metadata"):
        open_model(rewritten(tmp_path, cut))


def test_a_damaged_record_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a record in its metadata cannot be read"):
        open_model(rewritten(tmp_path, lambda m: with_props(m, origin="{")))


def flip_a_bit(model):
    tensor = next(t for t in model.graph.initializer if t.name == "dim_reducer.4.weight")
    numbers = numpy_helper.to_array(tensor).copy()
    numbers.view(np.uint8).reshape(-1)[0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def retarget_a_node(model):
    next(n for n in model.graph.node if n.op_type == "Round").op_type = "Floor"


@pytest.mark.parametrize("edit", [flip_a_bit, retarget_a_node])
def test_a_file_that_was_edited_after_its_export_is_refused(tmp_path, edit):
    with pytest.raises(BadInput, match="edited after its export"):
        open_model(rewritten(tmp_path, edit))


def test_the_digest_does_not_depend_on_the_metadata_or_on_how_weights_are_stored():
    model = onnx.load(SHIPPED)
    digest = graph_digest(model)
    with_props(model, note="anything")
    tensor = model.graph.initializer[0]
    numbers = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, numbers.shape, numbers.ravel().tolist()))
    assert not tensor.raw_data
    assert graph_digest(model) == digest


def freeze_time(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24


def widen_an_input(model):
    model.graph.input[3].type.tensor_type.elem_type = TensorProto.INT64


def drop_an_output(model):
    del model.graph.output[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (freeze_time, r"input s2 is uint16 \(pixel, 24, 10\), must be uint16 \(pixel, t2, 10\)"),
        (widen_an_input, r"input s1_orbit is int64 \(pixel, t1\), must be uint8 \(pixel, t1\)"),
        (drop_an_output, r"output embedding is absent, must be float \(pixel, 128\)"),
    ],
)
def test_another_signature_is_refused_with_both_sides_named(tmp_path, change, message):
    def change_and_sign(model):
        change(model)
        with_props(model, graph_digest=graph_digest(model))

    with pytest.raises(BadInput, match=message):
        open_model(rewritten(tmp_path, change_and_sign))


def test_weights_in_another_file_are_refused(tmp_path):
    def move_out(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    with pytest.raises(BadInput, match="weights must be inside the model file"):
        open_model(rewritten(tmp_path, move_out))


def test_a_model_file_of_version_1_still_opens():
    """The file that 0.1.0 was first developed with; its name hides it from `*.onnx`, which git is told to leave out."""
    old = open_model(Path(__file__).with_name("golden") / "model-file-1.bin")
    assert old.variant == Variant()
    assert (old.encoder, old.profile) == (untrained.SIZES, untrained.untrained_profile())
    assert old.weights_sha256 == weights_sha256(untrained.random_weights(untrained.SIZES, untrained.SEED))


@pytest.mark.parametrize("change", [{"s2_resampling": "nearest"}, {"sampler": "v1.1"}, {"std_epsilon": 1e-3}])
def test_a_file_of_version_1_whose_rules_were_edited_is_refused(tmp_path, change):
    """Its records lie under no digest, so they are held against the only ones that there were."""
    model = onnx.load(Path(__file__).with_name("golden") / "model-file-1.bin")
    for record in model.metadata_props:
        if record.key == "profile":
            record.value = json.dumps({**json.loads(record.value), **change})
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=f"differs from v2's in {next(iter(change))}"):
        open_model(path)


def test_a_digest_covers_what_stands_inside_a_scan(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", 2])

    def scanning(op):
        state, item = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "i"))
        out = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s2", "o")]
        nodes = [helper.make_node(op, ["s", "i"], ["s2"]), helper.make_node("Identity", ["s2"], ["o"])]
        body = helper.make_graph(nodes, "body", [state, item], out)
        node = helper.make_node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1)
        zero = numpy_helper.from_array(np.zeros(2, np.float32), "zero")
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        return helper.make_model(helper.make_graph([node], "g", [x], [y], [zero]))

    assert graph_digest(scanning("Add")) == graph_digest(scanning("Add"))
    assert graph_digest(scanning("Add")) != graph_digest(scanning("Sub"))


@pytest.mark.parametrize(
    "record", ['{"precision": "bf16"}', '{"recurrence": "loop"}', '{"devices": []}', '{"devices": ["tpu"]}', "[]", "{"]
)
def test_a_variant_that_cannot_be_read_is_refused(tmp_path, record):
    with pytest.raises(BadInput, match=r"m\.onnx"):
        open_model(rewritten(tmp_path, lambda m: with_props(m, variant=record)))
