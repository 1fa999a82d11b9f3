"""Mutants of the encoder: layers, attention, pool, reducer."""

import numpy as np

from model.weights import layer_name
from mutants.bases import mutant
from mutants.tools import (
    add,
    attribute,
    attributed,
    constant,
    edit,
    feed,
    gemm,
    maker,
    nodes,
    put,
    reroute,
    rewrite,
    softmaxes,
)


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def gelu_for_relu(proto, context):
    """The activation that newer encoders have."""
    for modality in ("s2", "s1"):
        behind = gemm_output(proto, f"{layer_name(modality, 0)}.linear1")
        rewrite(nodes(proto, "Relu", behind)[0], "Gelu", behind)


def gemm_output(proto, layer):
    """What a linear layer of tokens gives, in any precision."""
    direct = [n for n in nodes(proto, "Gemm") if n.input[1] == f"{layer}.weight"]
    packed = [n.output[0] for n in nodes(proto, "DequantizeLinear", f"{layer}.weight")]
    return (direct or [n for n in nodes(proto, "Gemm") if n.input[1] in packed])[0].output[0]


@mutant("v2", "v1.1-mpc")
def the_reducer_s_relu_dropped(proto, context):
    """A reducer rebuilt from its keys, which an activation has none of."""
    relu = maker(proto, gemm(proto, "dim_reducer.4").input[0])
    rewrite(relu, "Identity", relu.input[0])


@mutant("v2", "v1.1-aws", seldom=True)
def the_reducer_s_norm_dropped(proto, context):
    """A reducer rebuilt as two linear layers and a ReLU."""
    norm = nodes(proto, "LayerNormalization", "dim_reducer.1.weight")[0]
    rewrite(norm, "Identity", norm.input[0])


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 int8")
def one_layer_skipped(proto, context):
    """A count of layers that is one too small."""
    last = layer_name("s1", context.sizes.layers - 1)
    residual = maker(proto, nodes(proto, "LayerNormalization", f"{last}.norm1.weight")[0].input[0])
    reroute(proto, nodes(proto, "LayerNormalization", f"{last}.norm2.weight")[0].output[0], residual.input[0])


@mutant("v2", "v1.0-qat", "v2 fp16")
def a_residual_dropped(proto, context):
    """A layer written without its shortcut."""
    residual = maker(proto, nodes(proto, "LayerNormalization", f"{layer_name('s2', 1)}.norm1.weight")[0].input[0])
    rewrite(residual, "Identity", residual.input[1])


def norm_epsilon(proto, value):
    for node in nodes(proto, "LayerNormalization"):
        attributed(node, epsilon=value)


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def layer_norm_epsilon_of_1e_3(proto, context):
    """The epsilon of another framework's LayerNorm."""
    norm_epsilon(proto, 1e-3)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8", by=("inner constants",))
def layer_norm_epsilon_of_1e_6(proto, context):
    """The epsilon of vision transformers: invisible in outputs unless a layer's variance is small."""
    norm_epsilon(proto, 1e-6)


@mutant("v2 with QK-norm")
def qk_norm_epsilon_of_1e_5(proto, context):
    """LayerNorm's epsilon in the RMSNorm of queries and keys."""
    put(proto, "qk_norm_epsilon", np.float32(1e-5))


@mutant("v2 with QK-norm", by=("inner constants",))
def qk_norm_epsilon_of_1e_6(proto, context):
    """Another library's default for RMSNorm."""
    put(proto, "qk_norm_epsilon", np.float32(1e-6))


@mutant("v2 with QK-norm")
def qk_norm_dropped(proto, context):
    """The plain student's layer for a checkpoint with QK-norm."""
    for node in nodes(proto, "Div"):
        if maker_is(proto, node.input[1], "Sqrt"):
            rewrite(node, "Identity", node.input[0])


def maker_is(proto, name, op):
    return any(name in n.output and n.op_type == op for n in proto.graph.node)


@mutant("v2 with QK-norm", seldom=True)
def qk_norm_of_length_one(proto, context):
    """Queries and keys scaled to length 1, not to a mean square of 1."""
    for node in nodes(proto, "ReduceMean"):
        node.op_type = "ReduceSum"


@mutant("v1.0-early", "v2 with QK-norm", "v2 fp16", "v2 int8")
def scores_scaled_by_the_whole_width(proto, context):
    """Attention divided by the root of the width, not of a head's."""
    edit(proto, "head_scale", lambda a: np.full_like(a, context.sizes.width**-0.5))


@mutant("v1.1-mpc", "v2", seldom=True)
def scores_scaled_twice(proto, context):
    """A fused attention operator that scales what was scaled already."""
    edit(proto, "head_scale", np.square)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8")
def softmax_over_the_queries(proto, context):
    """Attention normalised along the wrong axis."""
    for node in softmaxes(proto, context.sizes)[0]:
        attributed(node, axis=-2)


@mutant("v2 with QK-norm", "v1.1-mpc")
def pool_softmax_over_the_pixels(proto, context):
    """The pool normalised over the batch instead of over time."""
    for node in softmaxes(proto, context.sizes)[1]:
        attributed(node, axis=0)


def heads_apart(proto, sizes):
    """The two Concat nodes that say N, T, heads, width of a head."""
    return nodes(proto, "Concat", f"ints_{sizes.heads}_{sizes.head_width}")


@mutant("v2", "v1.0-early")
def heads_interleaved(proto, context):
    """A layout in which every fourth value is of one head, as a view taken the other way round gives."""
    for node in heads_apart(proto, context.sizes):
        node.input[1] = constant(proto, [context.sizes.head_width, context.sizes.heads], np.int64)
    turned = {(0, 2, 3, 1): [0, 3, 2, 1]}
    for node in nodes(proto, "Transpose"):
        perm = tuple(attribute(node, "perm").ints)
        if perm in turned or perm == (0, 2, 1, 3):
            behind = maker_is(proto, node.input[0], "MatMul")
            attributed(node, perm=turned.get(perm, [0, 2, 3, 1] if behind else [0, 3, 1, 2]))


@mutant("v2", "v1.1-mpc", "v2 int8")
def pixels_mixed_in_attention(proto, context):
    """Time before batch where the layer wants batch before time: rows of several pixels attend to each other."""
    for node in heads_apart(proto, context.sizes):
        feed(proto, node, 0, "Gather", constant(proto, [1, 0], np.int64))


@mutant("v1.0-early", "v1.1-mpc", "v2", "v2 with QK-norm")
def a_mean_in_place_of_the_pool(proto, context):
    """The reference's own fallback: where its pool raises, it prints a line and takes the mean."""
    for node in softmaxes(proto, context.sizes)[1]:
        feed(proto, node, 0, "Mul", constant(proto, 0))


@mutant("v2", "v1.1-aws", "v2 int8", seldom=True)
def sensors_in_the_other_order(proto, context):
    """Radar before optical in front of the reducer."""
    both = maker(proto, gemm(proto, "dim_reducer.0").input[0])
    rewrite(both, "Concat", *reversed(both.input), axis=-1)


@mutant("v2", "v1.0-qat")
def radar_left_out(proto, context):
    """An optical-only run that nobody declared: the radar vector is zero."""
    both = maker(proto, gemm(proto, "dim_reducer.0").input[0])
    feed(proto, both, 1, "Mul", constant(proto, 0))


@mutant("v1.1-mpc GRU", "v2")
def only_64_observations(proto, context):
    """A limit from the days of 64 observations: later ones are cut off."""
    for name in ("s2", "s2_doy"):
        span = [constant(proto, [v], np.int64) for v in (0, 64, 1)]
        cut = add(proto, "Slice", name, *span)
        for node in list(proto.graph.node)[:-1]:
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = cut
