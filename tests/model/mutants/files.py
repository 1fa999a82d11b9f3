"""Mutants of the file: its axes, names, types, operators and ballast, and integers where it has them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from model import modelfile
from model.graph import NATIVE
from model.graph_ops import quantise_bias
from mutants.bases import mutant
from mutants.tools import add, attributed, constant, dims_of, edit, gemm, maker, nodes, put, rewrite, softmaxes, tensor


@mutant("v1.1-mpc", "v2", by=("signature",))
def time_frozen_in_the_signature(proto, context):
    """What an exporter did when a dynamic axis was asked of it: the file says 24."""
    for value in proto.graph.input:
        if value.name.startswith("s2"):
            dims_of(value)[1].dim_value = 24


@mutant("v2")
def one_pixel_at_a_time(proto, context):
    """An export traced with one pixel."""
    for value in proto.graph.input:
        dims_of(value)[0].dim_value = 1


def shapes_baked(proto, sizes, lead):
    """Every reshape to (pixels, time, ..) gets two numbers in place of the axes that it is given."""
    sized = {n.output[0] for n in nodes(proto, "Shape") if n.input[0].endswith("_doy")}
    for node in nodes(proto, "Concat"):
        if node.input[0] in sized:
            node.input[0] = constant(proto, lead, np.int64)


@mutant("v1.1-mpc", "v2", by=("runs",))
def time_frozen_at_40(proto, context):
    """A traced reshape: the signature says dynamic, the numbers inside say 40."""
    shapes_baked(proto, context.sizes, [-1, 40])


@mutant("v2", "v1.0-early", by=("runs",))
def pixels_frozen_at_64(proto, context):
    """A reshape traced with a batch of 64."""
    shapes_baked(proto, context.sizes, [64, -1])


@mutant("v2", by=("signature",))
def time_axes_with_one_name(proto, context):
    """Both sensors' time under one name: a runtime may hold them to one length."""
    for value in proto.graph.input:
        if value.name.startswith("s1"):
            dims_of(value)[1].dim_param = "t2"


@mutant("v2")
def days_as_int64(proto, context):
    """An input of another type than the contract's."""
    for value in proto.graph.input:
        if value.name.endswith("_doy"):
            value.type.tensor_type.elem_type = TensorProto.INT64


@mutant("v2", by=("signature",))
def an_input_more(proto, context):
    """An attention mask that nobody reads."""
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["pixel", "t2"]))


@mutant("v2", "v1.0-early")
def a_constant_that_callers_may_replace(proto, context):
    """Initialisers listed as inputs, as old exporters do: whoever runs the file may change the means."""
    proto.graph.input.append(helper.make_tensor_value_info("s2_mean", TensorProto.FLOAT, [10]))


@mutant("v2")
def an_output_more(proto, context):
    """A tensor somebody wanted to look at and left in."""
    native = context.sizes.native_dims
    proto.graph.output.append(helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, ["pixel", native]))


@mutant("v2")
def outputs_with_other_names(proto, context):
    """codes under another name."""
    maker(proto, "codes").output[0] = "quantized"
    next(v for v in proto.graph.output if v.name == "codes").name = "quantized"


@mutant("v2", alike=True)
def an_inner_shape_frozen(proto, context):
    """A tool that writes down the shapes of one run: inner tensors are said to have 7 pixels."""
    proto.graph.value_info.append(
        helper.make_tensor_value_info(NATIVE, TensorProto.FLOAT, [7, context.sizes.native_dims])
    )


@mutant("v2", by=("versions",))
def a_newer_opset(proto, context):
    """An exporter's newest operators, which older runtimes refuse."""
    proto.opset_import[0].version = 23


@mutant("v2", by=("versions",))
def a_newer_ir(proto, context):
    """The file format that onnx writes unless it is told otherwise."""
    proto.ir_version = 12


@mutant("v2", "v2 fp16", by=("versions",))
def an_operator_of_one_runtime(proto, context):
    """A fused operator left by an optimiser: the same numbers, in one runtime alone."""
    node = softmaxes(proto, context.sizes)[1][0]
    product = nodes(proto, "MatMul", node.output[0])[0]
    product.op_type, product.domain = "FusedMatMul", "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@mutant("v2", by=("versions",), seldom=True)
def a_foreign_domain_announced(proto, context):
    """A domain imported and not used."""
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@mutant("v2")
def a_local_function(proto, context):
    """A function defined in the file, which some runtimes do not inline."""
    node = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", modelfile.OPSET)]
    proto.functions.append(helper.make_function("local", "Activation", ["x"], ["y"], [node], opset))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    relu = maker(proto, gemm(proto, "dim_reducer.4").input[0])
    relu.op_type, relu.domain = "Activation", "local"


@mutant("v2")
def weights_in_another_file(proto, context):
    """A file saved with its weights beside it, and sent alone."""
    held = next(t for t in proto.graph.initializer if t.name == "dim_reducer.0.weight")
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value="weights.bin")


@mutant("v2", "v1.1-mpc", by=("operators",))
def a_branch(proto, context):
    """Control flow that a tracer left in: both ways the same, and no GPU graph can hold it."""
    info = [helper.make_tensor_value_info("way", TensorProto.FLOAT, None)]

    def way(name):
        node = helper.make_node("Identity", [f"{NATIVE}_before"], ["way"])
        return helper.make_graph([node], name, [], info)

    node = maker(proto, NATIVE)
    node.output[0] = f"{NATIVE}_before"
    yes = constant(proto, True, np.bool_)
    add(proto, "If", yes, out=NATIVE, then_branch=way("then"), else_branch=way("else"))


@mutant("v2", by=("onnx checker",))
def an_initialiser_twice(proto, context):
    """Two tensors of one name: which one counts is the runtime's choice."""
    again = proto.graph.initializer.add()
    again.CopyFrom(numpy_helper.from_array(tensor(proto, "dim_reducer.4.bias") + 1, "dim_reducer.4.bias"))


@mutant("v2", alike=True, by=("nodes",))
def an_unused_initialiser(proto, context):
    """The projector's weights left in the file: ballast that nobody reads."""
    put(proto, "projector.0.weight", np.ones((4, 4), np.float32))


@mutant("v2", alike=True, seldom=True)
def an_unused_node(proto, context):
    """A node whose result goes nowhere."""
    add(proto, "Abs", "embedding")


@mutant("v2", "v1.1-mpc", alike=True, by=("nodes",))
def a_node_renamed(proto, context):
    """A viewer that gives nodes names of its own and saves."""
    proto.graph.node[3].name = "Concat_3"


@mutant("v2", alike=True, seldom=True)
def a_note_on_a_node(proto, context):
    """A doc string, with the path of the machine that wrote it."""
    proto.graph.node[5].doc_string = "traced in encoder.py, line 41"


@mutant("v2", alike=True)
def a_clip_less(proto, context):
    """The quantiser's clip taken out, which a largest value of 127 never needs."""
    node = nodes(proto, "Clip")[0]
    rewrite(node, "Identity", node.input[0])


@mutant("v2", "v1.1-mpc", alike=True)
def a_transpose_folded(proto, context):
    """An optimiser's work: a weight stored transposed, and the layer told so."""
    node = gemm(proto, "dim_reducer.0")
    node.input[1] = constant(proto, tensor(proto, "dim_reducer.0.weight").T)
    attributed(node, transB=0)


def integer_weights(proto):
    return [n for n in nodes(proto, "DequantizeLinear") if n.input[0].endswith(".weight")]


@mutant("v2 int8", "v1.1-mpc int8", by=("weights",))
def eight_bit_weights(proto, context):
    """Weights over all of int8: right with VNNI, saturating in the kernels of CPUs without it."""
    tensors = context.base.tensors()
    for node in integer_weights(proto):
        name = node.input[0].removesuffix(".weight")
        weight = tensors[f"{name}.weight"]
        scale = np.abs(weight).max(1) / np.float32(127)
        put(proto, f"{name}.weight", np.rint(weight / scale[:, None]).astype(np.int8))
        ratio = scale / tensor(proto, f"{name}.weight_scale")
        put(proto, f"{name}.weight_scale", scale.astype(np.float32))
        product = (tensor(proto, f"{name}.bias_scale") * ratio).astype(np.float32)
        put(proto, f"{name}.bias_scale", product)
        put(proto, f"{name}.bias", quantise_bias(tensors[f"{name}.bias"], product))


@mutant("v2 int8", "v1.1-mpc int8", by=("operators",))
def ranges_of_each_batch(proto, context):
    """Dynamic quantisation, the usual way: a pixel's codes depend on its neighbours."""
    for node in nodes(proto, "QuantizeLinear"):
        behind = nodes(proto, "DequantizeLinear", node.output[0])[0]
        names = [f"{node.output[0]}_{part}" for part in ("scale", "zero")]
        made = helper.make_node("DynamicQuantizeLinear", [node.input[0]], [node.output[0], *names], name=node.name)
        node.CopyFrom(made)
        behind.input[1], behind.input[2] = names


@mutant("v2 int8")
def zero_points_one_apart(proto, context):
    """Inputs quantised around 128 and read around 127."""
    other = constant(proto, 127, np.uint8)
    for node in nodes(proto, "DequantizeLinear", "zero_128"):
        node.input[2] = other


@mutant("v2 int8", seldom=True)
def zero_points_of_unsigned_inputs(proto, context):
    """A zero point of 0 for inputs that may be negative: they are cut off."""
    put(proto, "zero_128", np.uint8(0))


@mutant("v2 int8", by=("int8 ranges",))
def ranges_halved(proto, context):
    """Ranges measured on too few pixels: larger inputs are clipped."""
    for held in [t.name for t in proto.graph.initializer if t.name.endswith(".input_scale")]:
        edit(proto, held, lambda a: a / 2)


@mutant("v2 int8", by=("optimisation levels",))
def biases_in_other_units(proto, context):
    """Integer biases scaled without the inputs' step."""
    for held in [t.name for t in proto.graph.initializer if t.name.endswith(".bias_scale")]:
        edit(proto, held, lambda a: a * 2)


@mutant("v2 int8", seldom=True)
def rows_scaled_as_one(proto, context):
    """One scale for all rows of a weight under numbers that were made row by row."""
    for node in integer_weights(proto):
        edit(proto, node.input[1], lambda a: np.full_like(a, a.mean()))
