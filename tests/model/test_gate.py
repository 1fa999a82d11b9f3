import base64
import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from gate_faults import FAULTS, behind, both, edit, in_scan, negate_one, record, update_gate_inverted
from gate_files import FORMS, OF_PRECISION, READ, RUN, SHIPPED, check_of, failed, failed_unrun, signed
from onnx import TensorProto, helper, numpy_helper
from remembered import remembered

from model import gate_graph, gate_robustness, modelfile, parity
from model.errors import BadInput
from model.gate import gate
from model.gate_bench import Bench
from model.gate_report import GROUPS
from model.graph import NATIVE
from model.graph_ops import quantise_bias, quantise_weight
from model.modelfile import graph_digest, open_model
from model.stored import dequantised, initialisers
from model.weights import layer_name


@pytest.fixture(scope="module", autouse=True)
def reference_asked_once(tmp_path_factory):
    with remembered(tmp_path_factory.mktemp("reference")):
        yield


def first_of_each_check(faults):
    """Faults that are seen by running the file take a second each: the first of each check, the others as slow tests.

    Every check is held against more of them in test_mutants.py.
    """
    seen = set()
    for form, fault, seen_by in faults:
        again = seen_by in seen and seen_by not in READ
        seen.add(seen_by)
        yield pytest.param(form, fault, seen_by, marks=[pytest.mark.slow] if again else [])


@pytest.mark.parametrize(("form", "fault", "seen_by"), list(first_of_each_check(FAULTS)))
def test_a_fault_under_good_digests_is_found_by_the_check_that_is_there_for_it(tmp_path, sound, form, fault, seen_by):
    path = signed(tmp_path, sound(form), fault)
    found = failed_unrun(path) if seen_by in READ else failed(path)
    assert seen_by in found
    assert "graph digest" not in found


@pytest.mark.parametrize("form", ["own GRU", "v2 int8"])
def test_a_copy_that_was_only_signed_again_passes(tmp_path, sound, form):
    assert failed(signed(tmp_path, sound(form), lambda model: None)) == set()


def test_the_shipped_model_passes_every_check():
    report = gate(SHIPPED)
    assert [check for check in report.checks if not check.ok] == []
    assert report.ok
    assert {c.name for c in report.checks} == READ | RUN
    assert sum(report.distance.histogram) == sum(report.distance.code_steps) == report.distance.codes


def test_checks_come_in_groups_and_each_says_what_it_wants_and_why():
    checks = gate(SHIPPED).checks
    places = [list(GROUPS).index(check.group) for check in checks]
    assert places == sorted(places)
    assert all(check.name and check.measured and check.limit and check.why for check in checks)
    assert len({check.name for check in checks}) == len(checks)


def test_files_of_other_precisions_have_a_check_of_their_own(sound):
    for form, own in OF_PRECISION.items():
        assert {c.name for c in gate(sound(form)).checks} == READ | RUN | own


def test_an_int8_file_tells_what_it_costs(sound):
    measured = {check.name: check.measured for check in gate(sound("v2 int8")).checks}
    assert "% equal, cosine 0.99" in measured["parity with NumPy"]
    assert "--against" in measured["weights"]


def test_a_file_without_good_digests_fails_and_is_named(tmp_path):
    model = onnx.load(SHIPPED)
    edit("dim_reducer.4.weight", negate_one)(model)
    path = tmp_path / "edited.onnx"
    path.write_bytes(model.SerializeToString())
    assert {"graph digest", "weights"} <= failed(path)


def test_the_digest_covers_what_is_inside_a_scan(sound):
    model = onnx.load(sound("own GRU"))
    before = graph_digest(model)
    in_scan(update_gate_inverted)(model)
    assert graph_digest(model) != before
    assert any(where.startswith("Scan") for where, _ in gate_graph.walk(model.graph))


def test_a_frozen_axis_fails_and_nothing_is_run(tmp_path):
    def freeze(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24

    report = gate(signed(tmp_path, SHIPPED, freeze))
    found = {c.name: c for c in report.checks if not c.ok}
    assert "input s2 is uint16 (pixel, 24, 10), must be uint16 (pixel, t2, 10)" in found["signature"].measured
    assert found["runs"].measured == "not run: signature failed"
    assert report.distance is None


def test_an_axis_that_is_frozen_inside_fails_though_the_signature_is_free(tmp_path, sound):
    """A traced reshape: numbers in place of the axes that the input has."""

    def bake(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 40], np.int64), "traced"))
        sizes = {n.output[0] for n in model.graph.node if n.op_type == "Shape"}
        for node in model.graph.node:
            if node.op_type == "Concat" and node.input[0] in sizes:
                node.input[0] = "traced"

    assert {"runs", "nodes"} <= failed(signed(tmp_path, sound("v2"), bake))


def test_an_operator_of_one_runtime_only_fails(tmp_path):
    def add_domain(model):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    assert failed(signed(tmp_path, SHIPPED, add_domain)) == {"versions"}


def test_control_flow_fails_and_is_not_run(tmp_path):
    def add_branch(model):
        value = helper.make_tensor_value_info("way", TensorProto.FLOAT, None)
        ways = [
            helper.make_graph([helper.make_node("Identity", [f"{NATIVE}_0"], ["way"])], name, [], [value])
            for name in ("then", "else")
        ]
        behind(NATIVE, ("If", (), {"then_branch": ways[0], "else_branch": ways[1]}))(model)
        node = next(n for n in model.graph.node if n.op_type == "If")
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        node.input[0] = "yes"

    report = gate(signed(tmp_path, SHIPPED, add_branch))
    found = {c.name: c.measured for c in report.checks if not c.ok}
    assert "If, which no such file has" in found["operators"]
    assert "not run" in found["runs"]


def test_a_graph_that_the_runtime_refuses_fails_in_words(tmp_path):
    names = [t.name for t in onnx.load(SHIPPED).graph.initializer]
    wrong = next(n for n in names if n.startswith("ints_") and n.endswith("_10"))
    path = signed(tmp_path, SHIPPED, edit(wrong, lambda a: np.array([-1, 7], np.int64)))
    assert failed(path) & {"onnx checker", "runs"}


def test_a_model_that_draws_is_found_by_running_it_twice(sound):
    """The check itself: such an operator is refused before anything is run."""
    model = onnx.load(sound("v2"))
    opened = modelfile.read_model(model, b"", Path("m.onnx"))
    arrays = initialisers(model)
    weights = dequantised(arrays, opened.encoder, opened.variant)
    before = Bench(model.SerializeToString(), model, opened, arrays, weights, full=False)
    assert gate_robustness.again(before).ok
    noise = helper.make_node("RandomNormalLike", [f"{NATIVE}_0"], ["noise"], scale=1e-7)
    behind(NATIVE, ("Add", ("noise",), {}))(model)
    place = next(i for i, n in enumerate(model.graph.node) if "noise" in n.input)
    model.graph.node.insert(place, noise)
    after = Bench(model.SerializeToString(), model, opened, arrays, weights, full=False)
    assert not gate_robustness.again(after).ok


@pytest.mark.slow
def test_the_full_gate_compares_more():
    assert gate(SHIPPED, full=True).distance.codes > 5 * gate(SHIPPED).distance.codes


def test_a_profile_of_one_s_own_needs_a_family_and_an_encoder_of_it(tmp_path, sound):
    def own(**fields):
        return both(record("profile", name="mine", **fields), record("origin", kind="training"), rename)

    def rename(model):
        name = next(p for p in model.metadata_props if p.key == "name")
        name.value = name.value.replace("v2-", "mine-")

    assert failed_unrun(signed(tmp_path, sound("v2"), own(s2_sources=["here"], notes="Ours."))) == set()
    assert "profile" in failed_unrun(signed(tmp_path, sound("v2"), own(family="v3")))
    measured = check_of(signed(tmp_path, sound("v2"), own(family="v1.1-mpc")), "profile").measured
    assert "encoder with pooling attention, family v1.1-mpc has custom-gru" in measured


def test_constants_that_differ_are_named_by_the_profile_s_fields(tmp_path, sound):
    path = signed(tmp_path, sound("v2"), edit("s1_mean", lambda a: a + np.array([[0, 0], [1, 0]])))
    assert check_of(path, "constants").measured.startswith("s1_descending_mean: 5817.14 in the graph, 5816.14 in")


def test_an_int8_file_whose_weights_are_edited_by_one_sign_is_further_from_pytorch_than_it_says(tmp_path, sound):
    path = signed(tmp_path, sound("v2 int8"), edit(f"{layer_name('s2', 0)}.linear1.weight", negate_one))
    check = check_of(path, "golden outputs")
    assert "cosine of the codes at least 0.999" in check.limit
    assert not check.ok


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n >= 2 * 6 else []) for n in range(24)])
def test_whatever_is_broken_the_gate_answers_with_failed_checks_or_bad_input(tmp_path, sound, seed):
    random = np.random.RandomState(seed)
    form = list(FORMS)[seed % len(FORMS)]
    content = bytearray(Path(sound(form)).read_bytes())
    if seed % 2:  # any bytes
        for place in random.randint(0, len(content), 3):
            content[place] = random.randint(256)
    else:  # the structure
        model = onnx.ModelProto.FromString(bytes(content))
        part = (model.graph.node, model.graph.initializer, model.graph.output)[seed // 2 % 3]
        del part[random.randint(len(part))]
        content = model.SerializeToString()
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with contextlib.suppress(BadInput):
        assert not gate(path).ok


def test_a_missing_file_and_a_foreign_one_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no model file"):
        gate(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"not onnx")
    with pytest.raises(BadInput, match="not an ONNX file"):
        gate(tmp_path / "m.onnx")


def test_quantised_weights_reach_the_border_in_every_row():
    """What the weights check of int8 files leans on."""
    weight = np.random.RandomState(0).standard_normal((9, 5)).astype(np.float32)
    weight[4] = 0
    codes, _ = quantise_weight(weight, np.zeros(9, np.float32), np.float32(0.02))
    assert np.abs(codes).max(1).tolist() == [64] * 4 + [0] + [64] * 4


@pytest.mark.parametrize("bias", [0.0, 0.3, -7.0])
@pytest.mark.parametrize("largest", [0.0, 1e-44, 1e-30, 1e-9, 1e-3, 2.0])
def test_rows_of_next_to_nothing_keep_their_bias(largest, bias):
    """Their own scale would leave the bias beyond int32, or be flushed to zero by some kernel."""
    step = np.float32(0.02)
    weight = np.random.RandomState(0).uniform(-1, 1, (1, 64)).astype(np.float32) * np.float32(largest)
    biases = np.array([bias], np.float32)
    codes, scale = quantise_weight(weight, biases, step)
    product = (step * scale).astype(np.float32)
    assert np.isfinite(product).all()
    assert product >= np.finfo(np.float32).tiny
    assert np.abs(codes).max() <= 64
    inputs = np.random.RandomState(1).randint(-127, 128, 64)
    got = (codes.astype(np.int64) @ inputs + quantise_bias(biases, product)) * product.astype(np.float64)
    exact = weight.astype(np.float64) @ (inputs * float(step)) + biases
    assert np.abs(got - exact).max() <= 64 * 127 * 0.51 * product.max()  # half a step of every weight


def test_a_golden_record_speaks_of_the_inputs_of_this_release(tmp_path):
    digest = parity.digest_of([parity.inputs_of(1, 8, 8)])
    assert "golden outputs" in failed(signed(tmp_path, SHIPPED, record("golden", inputs_sha256=digest)))
    codes = np.frombuffer(base64.b64decode(open_model(SHIPPED).golden["codes"]), np.int8)
    assert len(codes) == sum(n for n, _, _ in parity.GOLDEN_SIZES) * 128
