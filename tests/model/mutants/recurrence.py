"""Mutants of the recurrence: an nn.GRU, TESSERA's own as a Scan, and as an ONNX GRU."""

import numpy as np
from onnx import TensorProto, helper

from model.weights import CUSTOM_GRU, GATES, gru_name
from mutants.bases import mutant
from mutants.tools import add, attributed, constant, edit, maker, nodes, pooled, rewrite, states, steps


@mutant("v1.1-mpc GRU", by=("golden outputs", "parity with NumPy", "operators"))
def reset_after_the_product_in_the_operator(proto, context):
    """`linear_before_reset=1`, the only form that a GPU has: fast and wrong."""
    for node in nodes(proto, "GRU"):
        attributed(node, linear_before_reset=1)


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16", by=("golden outputs", "parity with NumPy"))
def reset_after_the_product(proto, context):
    """nn.GRU in place of TESSERA's own cell, as one global archive was computed."""
    for sensor, body in steps(proto):
        reset, product = (next(n for n in body.node if n.output[0] == f"{sensor}_step_{p}") for p in ("reset", "sum_n"))
        _, weight, of_h = product.input
        product.CopyFrom(helper.make_node("Add", [reset.output[0], of_h], list(product.output), name=product.name))
        share = helper.make_node("Gemm", [f"{sensor}_step_h", weight], [f"{sensor}_share"], name="share", transB=1)
        reset.input[1] = share.output[0]
        body.node.insert(0, share)


@mutant("v1.0-early")
def reset_before_the_product(proto, context):
    """TESSERA's own cell in place of nn.GRU: early v1.0 has nn.GRU."""
    for node in nodes(proto, "GRU"):
        attributed(node, linear_before_reset=0)


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-aws", by=("golden outputs", "parity with NumPy"))
def update_gate_inverted(proto, context):
    """z keeps the old state, as in nn.GRU, where TESSERA's z takes the new one."""
    for sensor, body in steps(proto):
        kept, new = (next(n for n in body.node if n.output[0] == f"{sensor}_step_{p}") for p in ("kept", "new"))
        kept.input[0], new.input[0] = new.input[0], kept.input[0]


@mutant("v1.1-mpc GRU", "v1.1-mpc int8", by=("golden outputs", "parity with NumPy"))
def update_gate_not_negated(proto, context):
    """ONNX's z keeps the old state: the weights of TESSERA's z must be negated, and were not."""
    for node in nodes(proto, "Neg"):
        rewrite(node, "Identity", node.input[0])


@mutant("v1.0-early")
def gates_in_torch_s_order(proto, context):
    """Gates stacked r, z, n as torch has them, where ONNX reads z, r, n."""
    for node in nodes(proto, "Concat"):
        if all(name.endswith(("_r", "_z", "_n")) for name in node.input):
            node.input[0], node.input[1] = node.input[1], node.input[0]


@mutant("v1.0-early", "v1.1-mpc GRU", "v1.1-mpc int8", by=("golden outputs",))
def recurrence_backwards_in_the_operator(proto, context):
    """The series read from its end."""
    for node in nodes(proto, "GRU"):
        attributed(node, direction="reverse")


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc fp16", by=("order of observations", "golden outputs"))
def recurrence_backwards(proto, context):
    """The series read from its end, its states in the order of time."""
    for node in nodes(proto, "Scan"):
        attributed(node, scan_input_directions=[1, 1, 1], scan_output_directions=[1])


@mutant("v1.1-mpc", seldom=True)
def states_written_backwards(proto, context):
    """States in the order of time reversed: each token gets the weight of another."""
    for node in nodes(proto, "Scan"):
        attributed(node, scan_output_directions=[1])


@mutant("v1.0-qat", "v1.1-aws")
def first_state_of_ones(proto, context):
    """A state that was not cleared before the first step."""
    for node in nodes(proto, "Expand"):
        node.input[0] = "one"


@mutant("v1.0-early", "v1.1-mpc GRU")
def first_state_of_ones_in_the_operator(proto, context):
    """A state left from the batch before."""
    for node in nodes(proto, "GRU"):
        width = constant(proto, [1, 1, context.sizes.width], np.int64)
        size = add(proto, "Shape", node.input[0], start=1, end=2)
        one, rest = (constant(proto, [v], np.int64) for v in (1, context.sizes.width))
        shape = add(proto, "Max", add(proto, "Concat", one, size, rest, axis=0), width)
        node.input.extend(["", add(proto, "Expand", constant(proto, 1.0), shape)])


@mutant("v1.0-early", "v1.1-mpc GRU", seldom=True)
def hard_sigmoids_in_the_operator(proto, context):
    """The gates of a mobile runtime."""
    for node in nodes(proto, "GRU"):
        attributed(node, activations=["HardSigmoid", "Tanh"])


@mutant("v1.0-qat", seldom=True)
def hard_sigmoids(proto, context):
    """The gates of a mobile runtime, written out."""
    for _, body in steps(proto):
        for node in body.node:
            if node.op_type == "Sigmoid":
                node.op_type = "HardSigmoid"


@mutant("v1.0-early", seldom=True)
def gates_clipped(proto, context):
    """A clip on the cell's sums, which some training code has and this has not."""
    for node in nodes(proto, "GRU"):
        attributed(node, clip=0.5)


@mutant("v1.1-mpc GRU")
def biases_counted_twice(proto, context):
    """The cell's one bias given as that of the token and as that of the state."""
    for node in nodes(proto, "GRU"):
        both = maker(proto, node.input[3])
        both.input[1] = both.input[0]


@mutant("v1.0-early", "v1.0-qat", "v1.1-mpc GRU", "v1.1-mpc int8")
def states_pooled_in_place_of_tokens(proto, context):
    """The pool sums the GRU's states, as most code would; TESSERA's sums the tokens."""
    for product, name in zip(pooled(proto, context.sizes), states(proto, context.sizes), strict=True):
        product.input[1] = add(proto, "Transpose", name, perm=[1, 0, 2])


@mutant("v1.0-qat", "v1.1-mpc", "v1.1-mpc GRU", "v1.1-mpc fp16")
def the_pool_s_norm_dropped(proto, context):
    """The states' LayerNorm left out, which early v1.0 has not."""
    for modality in ("s2", "s1"):
        norm = nodes(proto, "LayerNormalization", f"{modality}_backbone.attn_pool.layer_norm.weight")[0]
        rewrite(norm, "Identity", norm.input[0])


@mutant("v1.1-mpc fp16", by=("element types",))
def recurrence_in_float16(proto, context):
    """A converter that makes the recurrence half precision as well: what a step rounds away, the next ones carry on."""
    for sensor, body in steps(proto):
        state = f"{sensor}_step_next"
        made = next(n for n in body.node if n.output[0] == state)
        made.output[0] = f"{state}_exact"
        place = list(body.node).index(made) + 1
        to = (TensorProto.FLOAT16, TensorProto.FLOAT)
        names = (f"{state}_exact", f"{state}_half", state)
        casts = [helper.make_node("Cast", [names[i]], [names[i + 1]], name=names[i], to=to[i]) for i in (0, 1)]
        body.node.insert(place, casts[0])
        body.node.insert(place + 1, casts[1])


@mutant("v1.1-mpc int8", unseen=True)
def recurrence_in_int8(proto, context):
    """A quantiser that takes every weight: the recurrence's lie on a grid of int8 steps."""

    def grid(a):
        step = np.abs(a).max() / 127
        return np.rint(a / step) * step

    for name in gru_matrices(context.sizes):
        edit(proto, name, grid)


def gru_matrices(sizes):
    assert sizes.pooling == CUSTOM_GRU
    return [f"{gru_name(m)}.W_{side}{gate}.weight" for m in ("s2", "s1") for side in "ih" for gate in GATES]
