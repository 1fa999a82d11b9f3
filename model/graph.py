"""Graph: every encoder as an ONNX graph, from raw digital numbers to codes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto, helper

from model.graph_ops import Builder
from model.graph_pools import onnx_gru, scan_gru, torch_gru
from model.modelfile import DIMS, INPUTS, OUTPUTS
from model.profile import Profile
from model.variant import SCAN, Variant
from model.weights import (
    ATTENTION,
    CUSTOM_GRU,
    LAYER_NORM_EPSILON,
    MODALITIES,
    QK_NORM_EPSILON,
    EncoderSizes,
    Tensors,
    layer_name,
)

Array = npt.NDArray[Any]
NATIVE = "native"  # the encoder's whole output, before it is cut to the values that are stored


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


def build(
    tensors: Tensors,
    day_table: npt.NDArray[np.float32],
    sizes: EncoderSizes,
    profile: Profile,
    variant: Variant,
    ranges: Mapping[str, float] | None = None,
) -> GraphProto:
    """The whole contract as one graph of standard operators (opset 20).

    Args:
      tensors: as `weights.tensor_shapes` names them; they keep these names as initialisers.
      day_table: float32 (367, width), the encoding of each day.
      ranges: for int8, the largest |input| of each layer that is computed in integers (`layer_inputs`).

    Tokens are rows of a matrix (pixel * t, width) all the way, so that every linear layer is one Gemm with its bias and
    ReLU fused by the runtime; only attention sees pixels and heads apart.
    """
    g = Builder(tensors, variant.precision, ranges or {})
    _fill(g, day_table, sizes, profile, variant)

    def values(table: dict[str, tuple[int, tuple[str | int, ...]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, dtype, [profile.dims if d == DIMS else d for d in shape])
            for name, (dtype, shape) in table.items()
        ]

    name = f"tessera_{profile.family}"
    return helper.make_graph(g.nodes, name, values(INPUTS), values(OUTPUTS), list(g.initialisers.values()))


def layer_inputs(tensors: Tensors, sizes: EncoderSizes, profile: Profile, variant: Variant) -> dict[str, str]:
    """By linear layer of tokens, the tensor in the float32 graph that it is given."""
    g = Builder(tensors, "fp32", {})
    _fill(g, np.zeros((1, 1), np.float32), sizes, profile, variant)
    return g.inputs_of


def _fill(
    g: Builder, day_table: npt.NDArray[np.float32], sizes: EncoderSizes, profile: Profile, variant: Variant
) -> None:
    for name, array in constants_of(profile).items():
        g.keep(name, array)
    g.keep("day_table", day_table)
    both = g.op("Concat", *(_backbone(g, m, sizes, variant) for m in ("s2", "s1")), axis=-1)  # (N, 2d)
    z = g.linear(both, "dim_reducer.0")
    if sizes.hidden:
        z = g.linear(g.op("Relu", g.layer_norm(z, "dim_reducer.1")), "dim_reducer.4")  # (N, native_dims)
    if sizes.output_norm:
        ones = g.keep("ones", np.ones(sizes.native_dims, np.float32))
        z = g.op("LayerNormalization", z, ones, axis=-1, epsilon=LAYER_NORM_EPSILON)
    g.nodes[-1].output[0] = NATIVE
    z = g.op("Slice", NATIVE, g.ints(0), "dims", g.ints(1), out="embedding")  # (N, dims): cut first, then the scale
    largest = g.op("ReduceMax", g.op("Abs", z), g.ints(1), keepdims=0)  # (N,)
    if profile.scale_floor_of == "scale":
        scale = g.op("Max", g.op("Div", largest, "code_max"), "scale_floor", out="scale")
    else:
        scale = g.op("Div", g.op("Max", largest, "scale_floor"), "code_max", out="scale")
    codes = g.op("Round", g.op("Div", z, g.op("Unsqueeze", scale, g.ints(1))))  # ONNX rounds half to even
    g.op("Cast", g.op("Clip", codes, "code_min", "code_max"), to=TensorProto.INT8, out="codes")


def _tokens(g: Builder, modality: str, days: str) -> str:
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


def _backbone(g: Builder, modality: str, sizes: EncoderSizes, variant: Variant) -> str:
    """One sensor's series to one vector: (N, d)."""
    doy, name = f"{modality}_doy", f"{modality}_backbone"
    days = g.op("Cast", g.op("Reshape", doy, g.ints(-1)), to=TensorProto.INT64)  # (N * T,)
    size = g.op("Shape", doy)  # N, T
    apart = g.op("Concat", size, g.ints(sizes.heads, sizes.head_width), axis=0)  # N, T, H, d/H

    x = g.dense(_tokens(g, modality, days), f"{name}.embedding.0", relu=True, exact=True)
    x = g.wide(g.dense(x, f"{name}.embedding.2", exact=True))
    x = g.op("Add", x, g.op("Gather", "day_table", days))  # (N * T, d)
    for i in range(sizes.layers):
        layer = layer_name(modality, i)
        # In int8 this layer costs more codes than any other: heads of very unlike reach share one input range.
        mixed = _attention(g, x, layer, apart, sizes, bounded=i > 0)
        mixed = g.wide(g.dense(mixed, f"{layer}.out_proj", exact=True))
        x = g.layer_norm(g.op("Add", x, mixed), f"{layer}.norm1")
        wide = g.dense(x, f"{layer}.linear1", relu=True)
        x = g.op("Add", x, g.wide(g.dense(wide, f"{layer}.linear2", positive=True)))
        x = g.layer_norm(x, f"{layer}.norm2")

    rows = g.op("Reshape", x, g.op("Concat", size, g.ints(sizes.width), axis=0))  # (N, T, d)
    score = _scores(g, x, rows, size, modality, sizes, variant)  # (N, 1, T)
    return g.op("Reshape", g.op("MatMul", g.op("Softmax", score, axis=-1), rows), g.ints(-1, sizes.width))


def _scores(g: Builder, x: str, rows: str, size: str, modality: str, sizes: EncoderSizes, variant: Variant) -> str:
    """What the pool's query makes of each token, or of a GRU's state at it: (N, 1, T), float32."""
    pool = f"{modality}_backbone.attn_pool"
    n, t = g.op("Gather", size, g.ints(0)), g.op("Gather", size, g.ints(1))
    if sizes.pooling == ATTENTION:
        return g.op("Reshape", g.linear(x, f"{pool}.query"), g.op("Concat", n, g.ints(1), t, axis=0))
    in_time = g.op("Transpose", rows, perm=[1, 0, 2])  # (T, N, d)
    if sizes.pooling == CUSTOM_GRU:
        gru = scan_gru if variant.recurrence == SCAN else onnx_gru
        states = g.layer_norm(gru(g, in_time, modality, sizes.width), f"{pool}.layer_norm")
    else:
        states = torch_gru(g, in_time, modality, sizes.width)
    score = g.linear(g.op("Reshape", states, g.ints(-1, sizes.width)), f"{pool}.query")  # (T * N, 1)
    score = g.op("Transpose", g.op("Reshape", score, g.op("Concat", t, n, axis=0)), perm=[1, 0])  # (N, T)
    return g.op("Unsqueeze", score, g.ints(1))


def _attention(g: Builder, x: str, layer: str, apart: str, sizes: EncoderSizes, bounded: bool) -> str:
    """Every head's mixture of the values of its pixel's rows: (N * T, d), in the products' own precision.

    Args:
      bounded: whether `x` comes out of a LayerNorm. What the first layer is given grows with the reflectance: no
        range holds both a forest and a saturated row, so there q, k and v are not done in int8.
    """
    tokens = (g.dense(x, f"{layer}.{p}_proj", exact=not bounded) for p in "qkv")
    q, k, v = (g.op("Reshape", y, apart) for y in tokens)  # (N, T, H, d/H)
    if sizes.qk_norm:
        q, k = (g.narrow(_rms_norm(g, g.wide(y), f"{layer}.{p}_norm.weight")) for y, p in ((q, "q"), (k, "k")))
    half = g.precision == "fp16"
    root = g.number("head_scale", sizes.head_width**-0.5, np.float16 if half else np.float32)
    q = g.op("Mul", g.op("Transpose", q, perm=[0, 2, 1, 3]), root)
    k = g.op("Transpose", k, perm=[0, 2, 3, 1])  # (N, H, d/H, T)
    share = g.narrow(g.op("Softmax", g.wide(g.op("MatMul", q, k)), axis=-1))  # (N, H, T, T)
    mixed = g.op("MatMul", share, g.op("Transpose", v, perm=[0, 2, 1, 3]))  # (N, H, T, d/H)
    return g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(-1, sizes.width))


def _rms_norm(g: Builder, x: str, weight: str) -> str:
    """In the five operators that ONNX Runtime fuses into one; opset 20 has none of its own."""
    square = g.op("ReduceMean", g.op("Pow", x, g.number("two", 2.0)), g.ints(-1))
    root = g.op("Sqrt", g.op("Add", square, g.number("qk_norm_epsilon", QK_NORM_EPSILON)))
    return g.op("Mul", g.op("Div", x, root), g.weight(weight))
