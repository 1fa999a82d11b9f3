from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_encoders import SMALL, tensors_of

from model.families import profile_for
from model.gate_quantiser import edge_vectors, edges, quantiser, tail_of
from model.graph import NATIVE, build
from model.modelfile import IR_VERSION, OPSET, ModelFile
from model.parity import Outputs, RunError
from model.variant import variant_of


def made(case, dims):
    """(model of one form, what its records say)."""
    sizes = SMALL[case]
    family = case.split(" ")[0]
    profile, variant = profile_for(family, sizes.native_dims, dims), variant_of(sizes)
    graph = build(tensors_of(sizes), np.zeros((367, sizes.width), np.float32), sizes, profile, variant)
    proto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    records = dict.fromkeys(ModelFile.__dataclass_fields__)
    return proto, ModelFile(**{**records, "path": Path("m.onnx"), "profile": profile, "encoder": sizes})


def node(proto, op, reading=None):
    return next(n for n in proto.graph.node if n.op_type == op and (reading is None or reading in n.input))


def half_up(proto):
    found = node(proto, "Round")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    place = list(proto.graph.node).index(found)
    proto.graph.node.insert(place, helper.make_node("Add", [found.input[0], "half"], ["shifted"]))
    found.op_type, found.input[0] = "Floor", "shifted"


def floor_dropped(proto):
    found = node(proto, "Max", "scale_floor")
    found.CopyFrom(helper.make_node("Identity", [found.input[0]], list(found.output)))


def floor_higher(proto):
    """The floor of v1 in v2, and the other way round."""
    tensor = next(t for t in proto.graph.initializer if t.name == "scale_floor")
    other = 1e-8 if numpy_helper.to_array(tensor) < 1e-10 else 1e-12
    tensor.CopyFrom(numpy_helper.from_array(np.float32(other), "scale_floor"))


def scale_of_all_values(proto):
    node(proto, "Abs", "embedding").input[0] = NATIVE


def scale_by_128(proto):
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(128), "another"))
    found = node(proto, "Div", "code_max")
    found.input[1] = "another"


@pytest.mark.parametrize("case", ["v1.1-mpc", "v2"])
@pytest.mark.parametrize("dims", [1, 7, 12])
def test_the_nodes_of_every_family_quantise_as_numpy_does(case, dims):
    check = edges(*made(case, dims))
    assert check.ok, check


@pytest.mark.parametrize("case", ["v1.1-mpc", "v2"])
@pytest.mark.parametrize("fault", [half_up, floor_dropped, floor_higher, scale_of_all_values, scale_by_128])
def test_a_quantiser_of_another_rule_is_found(case, fault):
    proto, model = made(case, 7)
    fault(proto)
    onnx.checker.check_model(proto)
    assert not edges(proto, model).ok


def test_nodes_that_look_past_the_encoder_s_output_are_found():
    proto, model = made("v2", 7)
    cast = next(n for n in proto.graph.node if n.op_type == "Cast" and "codes" in n.output)
    cast.input[0] = "s2"
    assert tail_of(proto, 16) is None
    assert "reads more than" in edges(proto, model).measured


@pytest.mark.parametrize("dims", [1, 2, 16, 128])
def test_edge_vectors_hold_every_tie_of_a_scale_of_one(dims):
    vectors = edge_vectors(dims + 3, dims)
    assert vectors.dtype == np.float32 and np.isfinite(vectors).all()
    of_one = vectors[np.abs(vectors[:, :dims]).max(1) == 127]
    if dims > 1:
        assert set(np.abs(np.arange(-126.5, 127))) <= set(np.abs(of_one[:, 1:dims]).ravel().tolist())
    assert (vectors[:, :dims] == 0).all(1).any()


def test_an_embedding_that_is_not_finite_is_an_error_in_words():
    _, model = made("v2", 2)
    run = Outputs(np.zeros((1, 2), np.int8), np.ones(1, np.float32), np.array([[1, np.nan]], np.float32))
    with pytest.raises(RunError, match="NaN or infinity"):
        quantiser(model, [run])


def test_one_code_that_is_off_by_one_is_counted():
    _, model = made("v2", 2)
    right = Outputs(np.array([[127, 64]], np.int8), np.float32([1 / 127]), np.array([[1, 0.5]], np.float32))
    wrong = Outputs(np.array([[127, 63]], np.int8), right.scale, right.embedding)
    assert quantiser(model, [right]).ok
    check = quantiser(model, [right, wrong])
    assert not check.ok and check.measured.startswith("1 of 6")
