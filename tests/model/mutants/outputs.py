"""Mutants behind the encoder: the cut, the scale, the codes, and what one pixel learns of another."""

import numpy as np
from onnx import TensorProto

from model.graph import NATIVE
from model.weights import layer_name
from mutants.bases import mutant
from mutants.tools import add, constant, edit, feed, maker, nodes, put, reroute, rewrite, rounded, through


@mutant("v2", "v2 with QK-norm", "v2 fp16", "v2 int8")
def output_norm_dropped(proto, context):
    """v1's last layer on a v2 student."""
    node = maker(proto, NATIVE)
    rewrite(node, "Identity", node.input[0])


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16")
def output_norm_added(proto, context):
    """v2's last layer on a v1 encoder."""
    ones = constant(proto, np.ones(context.sizes.native_dims))
    through(proto, NATIVE, "LayerNormalization", ones, axis=-1, epsilon=1e-5)


@mutant("v1.1-mpc", "v2", "v2 fp16", by=("quantiser",))
def scale_of_all_native_values(proto, context):
    """The scale made before the vector is cut: codes of the stored part do not use their range."""
    nodes(proto, "Abs", "embedding")[0].input[0] = NATIVE


@mutant("v1.1-mpc", "v1.1-mpc int8", "v2", by=("whole output",))
def last_values_in_place_of_the_first(proto, context):
    """The vector cut at the wrong end."""
    native, dims = context.sizes.native_dims, context.base.profile.dims
    node = nodes(proto, "Slice", NATIVE)[0]
    node.input[1], node.input[2] = (constant(proto, [v], np.int64) for v in (native - dims, native))


@mutant("v2")
def prefix_normalised_again(proto, context):
    """A cut vector brought back to mean 0 and deviation 1, which the reference leaves as it is."""
    ones = constant(proto, np.ones(context.base.profile.dims))
    through(proto, "embedding", "LayerNormalization", ones, axis=-1, epsilon=1e-5)


@mutant("v2", "v1.1-mpc", seldom=True)
def vectors_of_length_one(proto, context):
    """Embeddings brought to unit length, as other products have them."""
    through(proto, "embedding", "LpNormalization", axis=-1, p=2)


@mutant("v1.0-qat", "v2", "v2 fp16", "v2 int8", by=("constants",))
def codes_down_to_minus_128(proto, context):
    """The v1 reference's clip: -128 means 'no data' here."""
    put(proto, "code_min", np.float32(-128))


@mutant("v1.1-mpc", "v2", by=("quantiser",))
def codes_up_to_126(proto, context):
    """A bound typed one too low: every pixel's largest value is cut."""
    nodes(proto, "Clip")[0].input[2] = constant(proto, 126)


def scaling(proto):
    """The division by 127 that a scale comes from."""
    return nodes(proto, "Div", "code_max")[0]


@mutant("v1.1-mpc", "v2", "v2 int8")
def scale_by_128(proto, context):
    """Another product's divisor."""
    scaling(proto).input[1] = constant(proto, 128)


@mutant("v2", seldom=True)
def scale_by_126(proto, context):
    """The bound of the codes edited in the graph, the divisor with it."""
    put(proto, "code_max", np.float32(126))


@mutant("v1.1-mpc", "v2", by=("quantiser edges",))
def rounding_half_up(proto, context):
    """floor(x + 0.5) in place of half to even: only ties tell them apart."""
    node = nodes(proto, "Round")[0]
    rewrite(node, "Floor", add(proto, "Add", node.input[0], constant(proto, 0.5)))


@mutant("v1.0-early", "v2", "v2 int8", by=("quantiser",))
def rounding_by_truncation(proto, context):
    """A cast in place of rounding: every code is pulled towards zero."""
    node = nodes(proto, "Round")[0]
    rewrite(node, "Cast", add(proto, "Cast", node.input[0], to=TensorProto.INT32), to=TensorProto.FLOAT)


@mutant("v1.1-aws", "v2 fp16", seldom=True)
def rounding_down(proto, context):
    """Floor in place of rounding."""
    nodes(proto, "Round")[0].op_type = "Floor"


@mutant("v1.0-qat", "v2")
def another_scale_floor(proto, context):
    """The floor of another version of the reference: only a vector of zeros tells."""
    put(proto, "scale_floor", np.float32(1e-4))


@mutant("v1.1-mpc", "v2", by=("quantiser edges",))
def scale_floor_dropped(proto, context):
    """A vector of zeros divided by zero."""
    node = nodes(proto, "Max", "scale_floor")[0]
    rewrite(node, "Identity", node.input[0])


@mutant("v2", by=("quantiser edges",))
def floor_of_the_scale_for_that_of_the_largest(proto, context):
    """The rule of v1.1 in v2: the floor on the scale, not on the largest value."""
    node = nodes(proto, "Max", "scale_floor")[0]
    scaling(proto).input[0] = node.input[0]
    rewrite(node, "Identity", node.input[0])
    through(proto, "scale", "Max", "scale_floor")


@mutant("v1.1-mpc", "v2", "v2 int8", by=("quantiser",))
def scale_in_float16(proto, context):
    """Scales stored in half precision while the codes were made by the exact ones."""
    reroute(proto, "scale", add(proto, "Identity", "scale_before_before"))
    rounded(proto, "scale", TensorProto.FLOAT16)


@mutant("v2", seldom=True)
def embedding_in_float16(proto, context):
    """The vector rounded on its way out, the codes not."""
    reroute(proto, "embedding", add(proto, "Identity", "embedding_before_before"))
    rounded(proto, "embedding", TensorProto.FLOAT16)


@mutant("v2 fp16", "v1.1-mpc fp16")
def quantiser_in_float16(proto, context):
    """A converter that makes the quantiser half precision too: values near a border fall to either side."""
    divided = nodes(proto, "Round")[0].input[0]
    rounded(proto, divided, TensorProto.FLOAT16)


@mutant("v1.1-mpc fp16", "v2 fp16", by=("element types",))
def layer_norms_in_float16(proto, context):
    """A converter that leaves no norm in float32: sums of squares overflow with trained weights."""
    for node in nodes(proto, "LayerNormalization"):
        for i in range(len(node.input)):
            feed(proto, node, i, "Cast", to=TensorProto.FLOAT16)
        through(proto, node.output[0], "Cast", to=TensorProto.FLOAT)


@mutant("v2 fp16", by=("element types",))
def softmax_in_float16(proto, context):
    """A converter that leaves no softmax in float32."""
    for node in nodes(proto, "Softmax"):
        feed(proto, node, 0, "Cast", to=TensorProto.FLOAT16)
        through(proto, node.output[0], "Cast", to=TensorProto.FLOAT)


@mutant("v2 fp16", by=("float16 range",))
def an_overflow_in_float16(proto, context):
    """Trained weights whose inner activations pass 65,504, made half precision unmeasured."""
    layer = layer_name("s2", 0)
    for part in ("weight", "bias"):
        edit(proto, f"{layer}.linear1.{part}", lambda a: a * 2.0**15)
    edit(proto, f"{layer}.linear2.weight", lambda a: a * 2.0**-15)


@mutant("v2", "v1.1-mpc", by=("one pixel at a time",))  # others need not raise the batch's largest value
def one_scale_for_the_batch(proto, context):
    """The scale of training's fake quantiser: one for the whole batch."""
    largest = nodes(proto, "ReduceMax")[-1].output[0]
    one = add(proto, "ReduceMax", f"{largest}_before", keepdims=1)
    through(proto, largest, "Max", one)


@mutant("v2", "v1.1-mpc", "v2 int8", by=("other neighbours", "one pixel at a time"))
def the_batch_s_mean_taken_off(proto, context):
    """A batch norm that still looks at its batch."""
    mean = add(proto, "ReduceMean", f"{NATIVE}_before", constant(proto, [0], np.int64), keepdims=1)
    through(proto, NATIVE, "Sub", mean)


@mutant("v2", "v1.1-mpc fp16", "v2 int8")
def a_trace_of_the_first_pixel(proto, context):
    """Memory shared between the pixels of a batch: a thousandth of the first one is in all."""
    first = [constant(proto, [v], np.int64) for v in (0, 1, 0)]
    trace = add(proto, "Slice", f"{NATIVE}_before", *first)
    through(proto, NATIVE, "Add", add(proto, "Mul", trace, constant(proto, 1e-3)))


@mutant("v2", "v2 int8", by=("operators",))
def dropout_left_on(proto, context):
    """An encoder exported in training mode."""
    through(proto, NATIVE, "Dropout", constant(proto, 0.2), constant(proto, True, np.bool_), seed=1)


@mutant("v2", "v1.0-qat", by=("same bytes twice",))
def noise_below_every_limit(proto, context):
    """An operator that draws: two runs of one file are no longer the same bytes."""
    noise = add(proto, "RandomNormalLike", f"{NATIVE}_before", scale=1e-7)
    through(proto, NATIVE, "Add", noise)
