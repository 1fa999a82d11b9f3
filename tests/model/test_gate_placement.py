import numpy as np
import onnx
import pytest
from small_encoders import SMALL, tensors_of

from model import gate_placement
from model.export import model_of
from model.families import profile_for
from model.gate_placement import PROVIDERS, nodes_of, placement, profiled, strays_of
from model.parity import RunError, Session, inputs_of
from model.variant import Variant, variant_of

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]
CASE = inputs_of(3, 5, 4)


@pytest.fixture(scope="module")
def content():
    sizes = SMALL["v1.1-mpc"]
    return model_of(tensors_of(sizes), sizes, profile_for("v1.1-mpc", 12), variant_of(sizes)).SerializeToString()


def event(name, provider, outputs, op="Gemm"):
    args = {"provider": provider, "op_name": op, "output_type_shape": outputs}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}


def test_every_node_is_counted_once_with_what_it_ran_on_those_inside_a_scan_too(content):
    events = profiled(content, CPU, CASE)
    nodes = nodes_of(events)
    assert {args["provider"] for args in nodes.values()} == {CPU}
    assert len(nodes) > 100
    assert any("s1_step_" in name for name in nodes)
    assert strays_of(events, CPU) == []


def test_the_check_tells_what_was_run_and_what_is_not_here(content):
    check = placement(content, Variant(), CASE)
    assert check.ok
    assert check.measured.startswith("cpu: ")
    assert check.measured.endswith("cuda: not present here, not measured")
    only = placement(content, Variant(devices=("cpu",)), CASE)
    assert only.measured.endswith("cuda: this file is not for it")


def test_a_node_on_the_cpu_is_a_stray_on_cuda_unless_all_that_it_gives_are_shapes():
    there = event("a", CUDA, [{"float": [3, 4]}])
    shape = event("b", CPU, [{"int64": [2]}], "Shape")
    scalar = event("c", CPU, [{"int64": []}], "Gather")
    assert strays_of([there, shape, scalar], CUDA) == []
    numbers = event("d", CPU, [{"float": [7]}], "GRU")
    indices = event("e", CPU, [{"int64": [3, 40]}], "Cast")
    mixed = event("f", CPU, [{"int64": [2]}, {"float": [2]}], "Split")
    silent = event("g", CPU, [], "Identity")
    for stray in (numbers, indices, mixed, silent):
        assert strays_of([there, shape, stray], CUDA) == [
            f"{stray['args']['op_name']} {stray['name'].removesuffix('_kernel_time')} on {CPU}"
        ]


def test_a_shape_is_a_stray_where_it_ran_on_neither():
    assert strays_of([event("b", "Other", [{"int64": [2]}], "Shape")], CUDA) == ["Shape b on Other"]


def test_a_profile_without_nodes_proves_nothing():
    assert strays_of([{"cat": "Session", "name": "model_run", "args": {}}], CPU) == ["the profile names no node"]


def test_a_provider_that_is_installed_and_answers_is_measured_and_its_strays_fail(content, monkeypatch):
    """A machine with a card, played: the GRU that fell back is named."""
    events = [event("a", CUDA, [{"float": [3, 4]}]), event("gru_7", CPU, [{"float": [5, 3, 16]}], "GRU")]
    monkeypatch.setattr(gate_placement, "profiled", lambda content, provider, case: events if provider == CUDA else [])
    monkeypatch.setattr(gate_placement, "need", lambda *why: FakeRuntime)
    check = placement(content, Variant(devices=("cuda",)), CASE)
    assert not check.ok
    assert check.measured == f"cpu: this file is not for it; cuda: 2 nodes; cuda: GRU gru_7 on {CPU}"


def test_a_provider_that_is_installed_without_a_card_is_said_to_be_unmeasured(content, monkeypatch):
    monkeypatch.setattr(gate_placement, "profiled", lambda content, provider, case: None)
    monkeypatch.setattr(gate_placement, "need", lambda *why: FakeRuntime)
    check = placement(content, Variant(devices=("cuda",)), CASE)
    assert check.ok
    assert "cuda: no such device answers here, not measured" in check.measured


class FakeRuntime:
    @staticmethod
    def get_available_providers():
        return [CUDA, CPU]


def test_a_session_says_what_it_runs_on(content):
    assert Session(content).providers == [CPU]


def test_a_profile_that_cannot_be_read_is_an_error_in_words(content):
    """ONNX Runtime writes names as they are: one with a quotation mark ends its own JSON."""
    model = onnx.load_from_string(content)
    for node in model.graph.node:
        node.name = f'{node.name}"'
    try:
        events = profiled(model.SerializeToString(), CPU, CASE)
    except RunError as e:
        assert "profile cannot be read" in str(e)
    else:  # a runtime that escapes them
        assert strays_of(events, CPU) == []
    assert np.isfinite(Session(content).run(CASE).embedding).all()
