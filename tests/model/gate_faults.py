"""Faults in model files: functions that change a graph in place, and the check that each is there for."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from model.graph import NATIVE
from model.weights import ATTENTION, gru_name, layer_name


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
