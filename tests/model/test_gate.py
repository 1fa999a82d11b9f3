import base64
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_encoders import SMALL, family_of_case, tensors_of

from model import gate_graph, gate_robustness, modelfile, parity
from model.checkpoints import Checkpoint, save_v2
from model.errors import BadInput
from model.export import export
from model.families import profile_for
from model.gate import gate
from model.gate_bench import Bench
from model.gate_report import GROUPS
from model.gate_static import static_checks
from model.graph import NATIVE
from model.graph_ops import quantise_bias, quantise_weight
from model.modelfile import graph_digest, open_model
from model.stored import dequantised, initialisers
from model.weights import ATTENTION, gru_name, layer_name, tensor_shapes, weights_sha256

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


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Key of `FORMS` -> path of a file that passes."""
    folder = tmp_path_factory.mktemp("sound")
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


# Faults, each a function that changes a model in place.


def edit(name, change):
    def mutate(model):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(np.array(change(array), array.dtype, order="C"), name))

    return mutate


def swap_bands(numbers):
    numbers[..., [0, 1]] = numbers[..., [1, 0]]
    return numbers


def negate_one(numbers):
    numbers.flat[np.abs(numbers).argmax()] *= -1
    return numbers


def replace_op(old, new, **attributes):
    def mutate(model):
        node = next(n for n in model.graph.node if n.op_type == old)
        made = helper.make_node(new, list(node.input), list(node.output), name=node.name, **attributes)
        node.CopyFrom(made)

    return mutate


def behind(name, *steps):
    """Nodes between a tensor and its readers: (operator, further inputs, attributes)."""

    def mutate(model):
        graph = model.graph
        place, maker = next((i, n) for i, n in enumerate(graph.node) if name in n.output)
        maker.output[list(maker.output).index(name)] = last = f"{name}_0"
        for i, (op, more, attributes) in enumerate(steps):
            out = name if i == len(steps) - 1 else f"{name}_{i + 1}"
            graph.node.insert(place + 1 + i, helper.make_node(op, [last, *more], [out], **attributes))
            last = out

    return mutate


def constant(value, dtype=np.float32):
    """A new initialiser, made by the first mutation that uses it."""
    name = f"new_{value}"

    def mutate(model):
        if all(t.name != name for t in model.graph.initializer):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))

    return name, mutate


def both(*changes):
    def mutate(model):
        for change in changes:
            change(model)

    return mutate


def set_attribute(op, **values):
    def mutate(model):
        for node in model.graph.node:
            if node.op_type == op:
                kept = [a for a in node.attribute if a.name not in values]
                del node.attribute[:]
                node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in values.items())])

    return mutate


def in_scan(change):
    def mutate(model):
        for node in model.graph.node:
            if node.op_type == "Scan":
                change(next(a for a in node.attribute if a.name == "body").g)

    return mutate


def update_gate_inverted(body):
    kept, new = (next(n for n in body.node if n.output[0].endswith(f"_step_{p}")) for p in ("kept", "new"))
    kept.input[0], new.input[0] = new.input[0], kept.input[0]


def record(which, **fields):
    def mutate(model):
        props = {p.key: p.value for p in model.metadata_props}
        props[which] = json.dumps({**json.loads(props[which]), **fields})
        helper.set_model_props(model, props)

    return mutate


def renamed(name):
    def mutate(model):
        props = {p.key: p.value for p in model.metadata_props}
        helper.set_model_props(model, {**props, "name": name})

    return mutate


def larger_inside(model):
    """Numbers that only float16 cannot hold."""
    layer = layer_name("s2", 0)
    for part in ("weight", "bias"):
        edit(f"{layer}.linear1.{part}", lambda a: a * 2.0**14)(model)
    edit(f"{layer}.linear2.weight", lambda a: a * 2.0**-14)(model)


def wider_weights(model):
    """Eight bits, where CPUs without VNNI add up seven."""
    edit(f"{layer_name('s2', 0)}.linear1.weight", lambda a: np.clip(a.astype(int) * 2, -127, 127))(model)


def steps_halved(model):
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".input_scale", ".bias_scale")):
            edit(tensor.name, lambda a: a / 2)(model)


def norm_in_half(model):
    name = next(n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization")
    half = {"to": TensorProto.FLOAT16}
    behind(name, ("Cast", (), half), ("Cast", (), {"to": TensorProto.FLOAT}))(model)


def the_gru_does_nothing(model):
    """States that are the same at every step: the pool becomes a mean."""
    for modality in ("s2", "s1"):
        edit(f"{modality}_backbone.attn_pool.query.weight", np.zeros_like)(model)


def native_turned(model):
    node = next(n for n in model.graph.node if n.op_type == "Slice" and n.input[0] == NATIVE)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "two_on"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([12], np.int64), "to_twelve"))
    node.input[1], node.input[2] = "two_on", "to_twelve"


def rounded_up(model):
    """A step up, by operators that every file has."""
    node = next(n for n in model.graph.node if n.op_type == "Round")
    one = numpy_helper.from_array(np.float32(0.5), "half_a_step")
    model.graph.initializer.append(one)
    shifted = helper.make_node("Add", [node.input[0], "half_a_step"], ["shifted"])
    node.input[0] = "shifted"
    model.graph.node.insert(list(model.graph.node).index(node), shifted)


def declared(model):
    model.graph.value_info.append(helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, [7, 16]))


def foreign_record(model):
    props = {p.key: p.value for p in model.metadata_props}
    helper.set_model_props(model, {**props, "approved": "yes"})


def clipped(op, *before):
    """Reflectance held below 10,000 on its way to the encoder."""

    def mutate(model):
        makers = {out: n for n in model.graph.node for out in n.output}
        cast = next(n for n in model.graph.node if n.op_type == "Cast" and reads(makers, n, "s2"))
        behind(cast.output[0], (op, (*before, TEN_THOUSAND[0]), {}))(model)

    return both(TEN_THOUSAND[1], mutate)


def reads(makers, node, name):
    """Whether a node's input is an input of the graph, or that input reshaped."""
    maker = makers.get(node.input[0])
    return maker is not None and maker.op_type == "Reshape" and maker.input[0] == name


TEN_THOUSAND, TRACE = constant(10_000.0), constant(1e-7)

FAULTS = [
    # Weights and constants.
    ("v2", edit("s2_backbone.embedding.0.weight", swap_bands), "golden outputs"),
    ("v2", edit("dim_reducer.4.weight", negate_one), "golden outputs"),
    ("v2 fp16", edit(f"{layer_name('s1', 0)}.linear1.weight", negate_one), "golden outputs"),
    ("v2 int8", edit(f"{layer_name('s2', 0)}.linear1.weight", negate_one), "golden outputs"),
    ("own GRU", edit(f"{gru_name('s2')}.W_hr.weight", negate_one), "golden outputs"),
    ("v2", edit("s2_mean", swap_bands), "constants"),
    ("v2", edit("s2_mean", swap_bands), "tokens"),
    ("v2 int8", edit("s1_std", lambda a: a[::-1]), "tokens"),
    ("v2", edit("s1_std", lambda a: a[::-1]), "parity with NumPy"),
    ("v2", edit("day_table", lambda a: np.roll(a, 1, 0)), "day table"),
    ("v2", edit("day_table", lambda a: a * np.float32(1 + 4e-6)), "day table"),
    ("v2", edit("head_scale", lambda a: a * 2), "inner constants"),
    ("QK-norm", edit("qk_norm_epsilon", lambda a: a * 8), "inner constants"),
    ("v2", edit("code_min", lambda a: a - 1), "constants"),
    ("v2", edit("ones", lambda a: a * 1.5), "inner constants"),
    ("v2 int8", wider_weights, "weights"),
    ("v2 int8", steps_halved, "int8 ranges"),
    ("v2 int8", edit("zero_128", lambda a: a - 1), "inner constants"),
    # Nodes.
    ("v2", rounded_up, "quantiser"),
    ("v2", replace_op("Round", "Floor"), "operators"),
    ("v2", set_attribute("LayerNormalization", epsilon=1e-6), "inner constants"),
    ("own GRU", in_scan(update_gate_inverted), "parity with NumPy"),
    ("own GRU", in_scan(update_gate_inverted), "nodes"),
    ("own GRU as GRU", set_attribute("GRU", linear_before_reset=1), "operators"),
    ("early", set_attribute("GRU", linear_before_reset=0), "operators"),
    ("early", set_attribute("GRU", direction="reverse"), "operators"),
    ("early", set_attribute("GRU", clip=0.5), "operators"),
    ("own GRU", set_attribute("Scan", scan_output_directions=[1]), "operators"),
    ("own GRU", the_gru_does_nothing, "order of observations"),
    ("v2 fp16", norm_in_half, "element types"),
    ("v2 fp16", larger_inside, "float16 range"),
    ("v2", clipped("Min"), "operators"),
    ("v2", clipped("Clip", ""), "extremes"),
    ("v2 int8", clipped("Clip", ""), "tokens"),
    ("v2", native_turned, "whole output"),
    ("v2", native_turned, "quantiser edges"),
    ("v2", both(TRACE[1], behind("scale", ("Add", (TRACE[0],), {}))), "quantiser edges"),
    ("v2", declared, "signature"),
    # Records.
    ("v2", record("profile", notes="Good for every source."), "profile"),
    ("v2", record("profile", sampler="v1.1"), "profile"),
    ("own GRU", record("profile", name="mine", s2_sources=["somewhere"]), "records"),
    ("own GRU", record("encoder", pooling=ATTENTION), "weights"),
    ("own GRU as GRU", record("variant", devices=["cpu", "cuda"]), "variant"),
    ("own GRU as GRU", record("variant", devices=["cpu", "cuda"]), "operators"),
    ("own GRU", record("variant", recurrence="gru", devices=["cpu"]), "operators"),
    ("v2", record("variant", precision="fp16"), "weights"),
    ("v2 fp16", record("variant", precision="fp32"), "weights"),
    ("v2", record("origin", family="v1.1-aws"), "records"),
    ("v2", record("origin", kind="gift"), "records"),
    ("v2", record("parity", max_abs_error=0.5), "records"),
    ("v2", record("parity", cases=[]), "records"),
    ("v2", record("golden", cases=[], codes="", scales=""), "golden outputs"),
    ("v2", record("golden", codes="not base64"), "golden outputs"),
    ("v2", renamed("../../v2-00000000"), "records"),
    ("v2", foreign_record, "records"),
]


@pytest.mark.parametrize(("form", "fault", "seen_by"), FAULTS)
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


@pytest.mark.parametrize("seed", range(24))
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


# Against checkpoints.


def checkpoint_file(path, case, seed=2, heads=None, change=lambda tensors: None):
    """A checkpoint in the published layout; `heads` None: it does not say how many."""
    sizes = SMALL[case]
    tensors = tensors_of(sizes, seed)
    change(tensors)
    if sizes.pooling == ATTENTION:
        save_v2(path, Checkpoint(tensors, sizes, {}))
    else:
        config = {} if heads is None else {"s2_num_heads": heads, "s1_num_heads": heads}
        torch.save({"model_state": {n: torch.from_numpy(t) for n, t in tensors.items()}, "config": config}, path)
    return path


@pytest.mark.parametrize("form", ["own GRU", "v2 fp16", "v2 int8"])
def test_against_its_checkpoint_a_file_passes(tmp_path, sound, form):
    case = FORMS[form][0]
    report = gate(sound(form), against=checkpoint_file(tmp_path / "c.pt", case, heads=SMALL[case].heads))
    assert [check for check in report.checks if not check.ok] == []
    places = [list(GROUPS).index(check.group) for check in report.checks]
    assert places == sorted(places)
    assert {c.name for c in report.checks if c.group == "checkpoint"} == {
        *("checkpoint's sizes", "checkpoint's profile", "checkpoint's weights", "parity with PyTorch"),
        "native outputs",
    }


def test_heads_that_the_checkpoint_does_not_tell_are_taken_from_the_file_and_said_to_be(tmp_path, sound):
    path = checkpoint_file(tmp_path / "c.pt", "v1.0-early")
    report = gate(sound("early"), against=path)
    assert report.ok
    sizes = next(c for c in report.checks if c.name == "checkpoint's sizes")
    assert "heads are not in the checkpoint, the model file's were taken" in sizes.measured


@pytest.mark.parametrize("form", ["v2 fp16", "v2 int8", "own GRU"])
def test_against_another_training_s_checkpoint_it_fails(tmp_path, sound, form):
    case = FORMS[form][0]
    path = checkpoint_file(tmp_path / "c.pt", case, seed=3, heads=SMALL[case].heads)
    assert failed(sound(form), against=path) == {"checkpoint's weights", "parity with PyTorch", "native outputs"}


@pytest.mark.parametrize("form", ["v2", "v2 fp16", "v2 int8"])
def test_weights_a_thousandth_off_are_told_by_their_bits_whatever_the_precision(tmp_path, sound, form):
    def change(tensors):
        tensors["s1_backbone.embedding.2.weight"] *= np.float32(1.001)

    path = checkpoint_file(tmp_path / "c.pt", "v2", change=change)
    assert "checkpoint's weights" in failed(sound(form), against=path)


def test_values_that_are_made_and_not_stored_are_held_against_the_checkpoint_too(tmp_path, sound):
    def change(tensors):
        tensors["dim_reducer.4.weight"][-1] *= -1

    path = checkpoint_file(tmp_path / "c.pt", "v1.1-mpc", heads=4, change=change)
    assert failed(sound("own GRU"), against=path) == {"checkpoint's weights", "native outputs"}


def test_a_checkpoint_of_another_family_is_bad_input_that_tells_of_the_family_and_not_of_heads(tmp_path, sound):
    with pytest.raises(BadInput, match=r"v1\.1-mpc") as refusal:
        gate(sound("own GRU"), against=checkpoint_file(tmp_path / "c.pt", "v2"))
    assert "--heads" not in str(refusal.value)


def test_the_shipped_model_is_that_of_its_own_weights():
    from pipeline.demo import untrained

    opened = open_model(SHIPPED)
    assert opened.weights_sha256 == weights_sha256(untrained.random_weights(untrained.SIZES, untrained.SEED))


def test_without_pytorch_against_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"--against needs torch.*tessera-beam\[train\]"):
        gate(SHIPPED, against="any.pt")


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
