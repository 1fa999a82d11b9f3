"""Graph pools: the GRUs of the v1 encoders as ONNX operators, from tokens to the states that are asked."""

from typing import Any

from onnx import TensorProto, helper

from model.graph_ops import Builder
from model.weights import GATES, gru_name


def scan_gru(g: Builder, x: str, modality: str, width: int) -> str:
    """TESSERA's own cell as a Scan over time of plain operators (`encoders.CustomGRU` has the equations).

    The tokens' share of each gate is one product for the whole series; only the state's share runs step by step. The
    recurrence is float32 in every precision: what a step rounds away, the next ones carry on.

    Args:
      x: tokens (T, N, d), float32.

    Returns:
      states (T, N, d).
    """
    cell = gru_name(modality)
    size = g.op("Shape", x)
    rows = g.op("Reshape", x, g.ints(-1, width))
    shares = []
    for gate in GATES:
        product = g.op("Gemm", rows, g.weight(f"{cell}.W_i{gate}.weight"), g.weight(f"{cell}.b_{gate}"), transB=1)
        shares.append(g.op("Reshape", product, size))
    pixels = g.op("Slice", size, g.ints(1), g.ints(2), g.ints(0))
    start = g.op("Expand", g.number("zero", 0.0), g.op("Concat", pixels, g.ints(width), axis=0))

    def name(part: str) -> str:
        return f"{modality}_step_{part}"

    def node(op: str, inputs: list[str], out: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs, [name(out)], name=f"make_{name(out)}", **attributes)

    weight = {gate: g.weight(f"{cell}.W_h{gate}.weight") for gate in GATES}
    body = [
        node("Gemm", [name("h"), weight["r"], name("of_r")], "sum_r", transB=1),
        node("Sigmoid", [name("sum_r")], "r"),
        node("Gemm", [name("h"), weight["z"], name("of_z")], "sum_z", transB=1),
        node("Sigmoid", [name("sum_z")], "z"),
        node("Mul", [name("r"), name("h")], "reset"),
        node("Gemm", [name("reset"), weight["h"], name("of_h")], "sum_n", transB=1),
        node("Tanh", [name("sum_n")], "n"),
        node("Sub", [g.number("one", 1.0), name("z")], "rest"),
        node("Mul", [name("rest"), name("h")], "kept"),
        node("Mul", [name("z"), name("n")], "new"),
        node("Add", [name("kept"), name("new")], "next"),
        node("Identity", [name("next")], "state"),
    ]

    def value(part: str) -> Any:
        return helper.make_tensor_value_info(name(part), TensorProto.FLOAT, ["pixel", width])

    step = helper.make_graph(
        body,
        f"{modality}_gru_step",
        [value(part) for part in ("h", "of_r", "of_z", "of_h")],
        [value("next"), value("state")],
    )
    states = f"{modality}_states"
    inputs = (start, *shares)
    g.add("Scan", inputs, (f"{modality}_last_state", states), body=step, num_scan_inputs=len(shares))
    return states


def onnx_gru(g: Builder, x: str, modality: str, width: int) -> str:
    """TESSERA's own cell as ONNX's GRU; the same arguments and result as `scan_gru`.

    ONNX's default form resets before the product as TESSERA does, but its z keeps the old state: sigmoid(-a) is
    1 - sigmoid(a), so weights and bias of z are negated. Order of gates: z, r, h.
    """
    cell = gru_name(modality)

    def stacked(parts: str, kind: str) -> str:
        z = g.op("Neg", g.weight(f"{cell}.{parts}z{kind}"))
        all_gates = g.op("Concat", z, *(g.weight(f"{cell}.{parts}{gate}{kind}") for gate in ("r", "h")), axis=0)
        return g.op("Unsqueeze", all_gates, g.ints(0))

    bias = stacked("b_", "")  # (1, 3 d); the state's share has none
    bias = g.op("Concat", bias, g.op("Mul", bias, g.number("zero", 0.0)), axis=1)
    states = g.op(
        "GRU", x, stacked("W_i", ".weight"), stacked("W_h", ".weight"), bias, hidden_size=width, linear_before_reset=0
    )
    return g.op("Squeeze", states, g.ints(1))


def torch_gru(g: Builder, x: str, modality: str, width: int) -> str:
    """nn.GRU as ONNX's GRU with `linear_before_reset=1`; torch stacks its gates r, z, n, ONNX z, r, n."""
    name = f"{modality}_backbone.attn_pool.temporal_context"

    def ordered(part: str) -> str:
        pieces = tuple(f"{name}.{part}_{gate}" for gate in ("r", "z", "n"))
        g.add("Split", (g.weight(f"{name}.{part}_l0"),), pieces, axis=0, num_outputs=3)
        return g.op("Unsqueeze", g.op("Concat", pieces[1], pieces[0], pieces[2], axis=0), g.ints(0))

    bias = g.op("Concat", ordered("bias_ih"), ordered("bias_hh"), axis=1)
    weights = (ordered("weight_ih"), ordered("weight_hh"))
    states = g.op("GRU", x, *weights, bias, hidden_size=width, linear_before_reset=1)
    return g.op("Squeeze", states, g.ints(1))
