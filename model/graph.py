"""Graph: the v2 student as an ONNX graph, from raw digital numbers to codes."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from model.modelfile import DIMS, INPUTS, OUTPUTS
from model.profile import Profile
from model.weights import LAYER_NORM_EPSILON, MODALITIES, QK_NORM_EPSILON, EncoderSizes, Tensors, layer_name

Array = npt.NDArray[Any]


def constants_of(profile: Profile) -> dict[str, Array]:
    """The profile's numbers as they stand in the graph, by initialiser name; a gate compares them."""
    return {
        "s2_mean": np.asarray(profile.s2_mean, np.float32),
        "s2_std": np.asarray(profile.s2_std, np.float32),
        "s1_mean": np.asarray((profile.s1_ascending_mean, profile.s1_descending_mean), np.float32),
        "s1_std": np.asarray((profile.s1_ascending_std, profile.s1_descending_std), np.float32),
        "std_epsilon": np.asarray(profile.std_epsilon, np.float32),
        "scale_floor": np.asarray(profile.scale_floor, np.float32),
        "code_min": np.asarray(profile.code_min, np.float32),
        "code_max": np.asarray(profile.code_max, np.float32),
        "dims": np.asarray([profile.dims], np.int64),
    }


class _Builder:
    """Nodes and initialisers in the order they are made; equal calls give equal names, so equal bytes."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}

    def keep(self, name: str, array: Array) -> str:
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.keep("ints_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def number(self, name: str, value: float) -> str:
        return self.keep(name, np.asarray(value, np.float32))

    def op(self, op_type: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        output = out or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"make_{output}", **attributes))
        return output


def build(tensors: Tensors, day_table: npt.NDArray[np.float32], sizes: EncoderSizes, profile: Profile) -> GraphProto:
    """The whole contract as one graph of standard operators (opset 20).

    Args:
      tensors: as `weights.tensor_shapes` names them; they keep these names as initialisers.
      day_table: float32 (367, width), the encoding of each day.

    Tokens are rows of a matrix (pixel * t, width) all the way, so that every linear layer is one Gemm with its bias and
    ReLU fused by the runtime; only attention sees pixels and heads apart.
    """
    g = _Builder()
    for name, array in constants_of(profile).items():
        g.keep(name, array)
    g.keep("day_table", day_table)
    for name in tensors:
        g.keep(name, tensors[name])

    both = g.op("Concat", _backbone(g, "s2", sizes), _backbone(g, "s1", sizes), axis=-1)  # (N, 2d)
    z = g.op("Relu", _layer_norm(g, _linear(g, both, "dim_reducer.0"), "dim_reducer.1"))
    z = _linear(g, z, "dim_reducer.4")  # (N, native_dims)
    ones = g.keep("ones", np.ones(sizes.native_dims, np.float32))
    z = g.op("LayerNormalization", z, ones, axis=-1, epsilon=LAYER_NORM_EPSILON)
    z = g.op("Slice", z, g.ints(0), "dims", g.ints(1), out="embedding")  # (N, dims)
    largest = g.op("ReduceMax", g.op("Abs", z), g.ints(1), keepdims=0)  # (N,)
    scale = g.op("Div", g.op("Max", largest, "scale_floor"), "code_max", out="scale")
    codes = g.op("Round", g.op("Div", z, g.op("Unsqueeze", scale, g.ints(1))))  # ONNX rounds half to even
    g.op("Cast", g.op("Clip", codes, "code_min", "code_max"), to=TensorProto.INT8, out="codes")

    def values(table: dict[str, tuple[int, tuple[str | int, ...]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, dtype, [profile.dims if d == DIMS else d for d in shape])
            for name, (dtype, shape) in table.items()
        ]

    return helper.make_graph(g.nodes, "v2_student", values(INPUTS), values(OUTPUTS), list(g.initialisers.values()))


def _linear(g: _Builder, x: str, name: str) -> str:
    return g.op("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)


def _layer_norm(g: _Builder, x: str, name: str) -> str:
    return g.op("LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=LAYER_NORM_EPSILON)


def _tokens(g: _Builder, modality: str, days: str) -> str:
    """Raw numbers to standardised rows (N * T, channels); the rows of day 0 to zeros."""
    mean, std = f"{modality}_mean", f"{modality}_std"
    if modality == "s1":
        orbit = g.op("Cast", g.op("Reshape", "s1_orbit", g.ints(-1)), to=TensorProto.INT64)
        mean, std = g.op("Gather", mean, orbit), g.op("Gather", std, orbit)  # (N * T, 2)
    raw = g.op("Reshape", modality, g.ints(-1, MODALITIES[modality]))
    x = g.op("Sub", g.op("Cast", raw, to=TensorProto.FLOAT), mean)
    x = g.op("Div", x, g.op("Add", std, "std_epsilon"))
    absent = g.op("Unsqueeze", g.op("Equal", days, g.ints(0)), g.ints(1))  # (N * T, 1)
    return g.op("Where", absent, g.number("zero", 0.0), x)


def _backbone(g: _Builder, modality: str, sizes: EncoderSizes) -> str:
    """One sensor's series to one vector: (N, d)."""
    doy, name = f"{modality}_doy", f"{modality}_backbone"
    days = g.op("Cast", g.op("Reshape", doy, g.ints(-1)), to=TensorProto.INT64)  # (N * T,)
    size = g.op("Shape", doy)  # N, T
    apart = g.op("Concat", size, g.ints(sizes.heads, sizes.head_width), axis=0)  # N, T, H, d/H

    x = g.op("Relu", _linear(g, _tokens(g, modality, days), f"{name}.embedding.0"))
    x = g.op("Add", _linear(g, x, f"{name}.embedding.2"), g.op("Gather", "day_table", days))  # (N * T, d)
    for i in range(sizes.layers):
        layer = layer_name(modality, i)
        mixed = _linear(g, _attention(g, x, layer, apart, sizes), f"{layer}.out_proj")
        x = _layer_norm(g, g.op("Add", x, mixed), f"{layer}.norm1")
        wide = g.op("Relu", _linear(g, x, f"{layer}.linear1"))
        x = _layer_norm(g, g.op("Add", x, _linear(g, wide, f"{layer}.linear2")), f"{layer}.norm2")

    n, t = g.op("Gather", size, g.ints(0)), g.op("Gather", size, g.ints(1))
    score = g.op("Reshape", _linear(g, x, f"{name}.attn_pool.query"), g.op("Concat", n, g.ints(1), t, axis=0))
    rows = g.op("Reshape", x, g.op("Concat", size, g.ints(sizes.width), axis=0))  # (N, T, d)
    return g.op("Reshape", g.op("MatMul", g.op("Softmax", score, axis=-1), rows), g.ints(-1, sizes.width))


def _attention(g: _Builder, x: str, layer: str, apart: str, sizes: EncoderSizes) -> str:
    """Every head's mixture of the values of its pixel's rows: (N * T, d)."""
    q, k, v = (g.op("Reshape", _linear(g, x, f"{layer}.{p}_proj"), apart) for p in "qkv")  # (N, T, H, d/H)
    if sizes.qk_norm:
        q, k = _rms_norm(g, q, f"{layer}.q_norm.weight"), _rms_norm(g, k, f"{layer}.k_norm.weight")
    q = g.op("Mul", g.op("Transpose", q, perm=[0, 2, 1, 3]), g.number("head_scale", sizes.head_width**-0.5))
    k = g.op("Transpose", k, perm=[0, 2, 3, 1])  # (N, H, d/H, T)
    share = g.op("Softmax", g.op("MatMul", q, k), axis=-1)  # (N, H, T, T)
    mixed = g.op("MatMul", share, g.op("Transpose", v, perm=[0, 2, 1, 3]))  # (N, H, T, d/H)
    return g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(-1, sizes.width))


def _rms_norm(g: _Builder, x: str, weight: str) -> str:
    """In the five operators that ONNX Runtime fuses into one; opset 20 has none of its own."""
    square = g.op("ReduceMean", g.op("Pow", x, g.number("two", 2.0)), g.ints(-1))
    root = g.op("Sqrt", g.op("Add", square, g.number("qk_norm_epsilon", QK_NORM_EPSILON)))
    return g.op("Mul", g.op("Div", x, root), weight)
