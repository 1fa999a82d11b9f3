"""Weights: the tensors of an encoder by name, and the sizes that they imply."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model.errors import BadInput

Tensors = Mapping[str, npt.NDArray[np.float32]]

MODALITIES = {"s2": 10, "s1": 2}  # channels of each backbone's input
LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which the published students use throughout
# torch.nn.RMSNorm's default, finfo(float32).eps. In float64 it fits the reference's QK-norm outputs with an rms of
# 5.000e-7; 1e-6 gives 5.48e-7 and 1e-5 2.79e-6.
QK_NORM_EPSILON = float(np.finfo(np.float32).eps)


# What weighs the tokens of a series: a softmax over time of one learned query, put to ...
ATTENTION = "attention"  # the tokens themselves (v2)
TORCH_GRU = "torch-gru"  # the states of an nn.GRU over them (v1.0-early)
CUSTOM_GRU = "custom-gru"  # the normalised states of TESSERA's own GRU (v1.0-qat, v1.1), which is not nn.GRU's
POOLINGS = (ATTENTION, TORCH_GRU, CUSTOM_GRU)
GATES = ("r", "z", "h")  # reset, update, candidate: b_r, W_ir (from the token), W_hr (from the state) and so on


@dataclasses.dataclass(frozen=True)
class EncoderSizes:
    """What must be known of an encoder beside its tensors, all of it but `heads` and `output_norm` read from them.

    Attributes:
      width: of the tokens, in both backbones ("d").
      layers: transformer layers in each backbone.
      heads: attention heads; divides `width`.
      feed_forward: width inside a layer.
      hidden: width inside the reducer; 0 for a reducer of one linear layer (v1.0).
      native_dims: width of the output.
      qk_norm: whether queries and keys pass an RMSNorm per head.
      pooling: what weighs a series' tokens, one of `POOLINGS`.
      output_norm: whether the output passes a LayerNorm without weights (v2).
    """

    width: int
    layers: int
    heads: int
    feed_forward: int
    hidden: int
    native_dims: int
    qk_norm: bool
    pooling: str = ATTENTION
    output_norm: bool = True

    def __post_init__(self) -> None:
        sizes = (self.width, self.layers, self.heads, self.feed_forward, self.native_dims)
        if min(sizes) < 1 or self.hidden < 0:
            raise BadInput(f"encoder sizes must be positive: {self}")
        if self.pooling not in POOLINGS:
            raise BadInput(f"pooling {self.pooling!r}: this release has {', '.join(POOLINGS)}")
        if self.width % self.heads or self.width % 2:
            raise BadInput(f"width {self.width} with {self.heads} heads: it must be even and a multiple of the heads")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def flop_per_px(sizes: EncoderSizes, t2: float, t1: float) -> float:
    """Floating-point operations of a pixel with so many token rows: twice the multiplications (facts/model.md 1)."""
    d, f = sizes.width, sizes.feed_forward
    pool = 1 if sizes.pooling == ATTENTION else 6 * d

    def branch(t: float, channels: int) -> float:
        layer = t * 4 * d * d + 2 * t * t * d + t * 2 * d * f
        return t * (channels * d + d * d) + sizes.layers * layer + t * d * (1 + pool)

    reducer = (2 * d + sizes.native_dims) * sizes.hidden if sizes.hidden else 2 * d * sizes.native_dims
    return 2.0 * (branch(t2, MODALITIES["s2"]) + branch(t1, MODALITIES["s1"]) + reducer)


def layer_name(modality: str, layer: int) -> str:
    """What the names of a transformer layer's tensors begin with."""
    return f"{modality}_backbone.transformer_encoder.{layer}"


def gru_name(modality: str) -> str:
    """What the names of the custom GRU's tensors begin with."""
    return f"{modality}_backbone.attn_pool.temporal_context.gru_cell"


def tensor_shapes(sizes: EncoderSizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor. Names are those of the published QK-norm layout, with and without QK-norm."""
    d, f = sizes.width, sizes.feed_forward
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for modality, channels in MODALITIES.items():
        linear(f"{modality}_backbone.embedding.0", d, channels)
        linear(f"{modality}_backbone.embedding.2", d, d)
        for i in range(sizes.layers):
            layer = layer_name(modality, i)
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}.{projection}", d, d)
            if sizes.qk_norm:
                shapes[f"{layer}.q_norm.weight"] = shapes[f"{layer}.k_norm.weight"] = (sizes.head_width,)
            linear(f"{layer}.linear1", f, d)
            linear(f"{layer}.linear2", d, f)
            norm(f"{layer}.norm1", d)
            norm(f"{layer}.norm2", d)
        pool = f"{modality}_backbone.attn_pool"
        linear(f"{pool}.query", 1, d)
        if sizes.pooling == TORCH_GRU:
            for side in ("ih", "hh"):
                shapes[f"{pool}.temporal_context.weight_{side}_l0"] = (3 * d, d)
                shapes[f"{pool}.temporal_context.bias_{side}_l0"] = (3 * d,)
        elif sizes.pooling == CUSTOM_GRU:
            for gate in GATES:
                shapes[f"{gru_name(modality)}.b_{gate}"] = (d,)
                for side in ("i", "h"):
                    shapes[f"{gru_name(modality)}.W_{side}{gate}.weight"] = (d, d)
            norm(f"{pool}.layer_norm", d)
    if sizes.hidden:
        linear("dim_reducer.0", sizes.hidden, 2 * d)
        norm("dim_reducer.1", sizes.hidden)
        linear("dim_reducer.4", sizes.native_dims, sizes.hidden)
    else:
        linear("dim_reducer.0", sizes.native_dims, 2 * d)
    return shapes


def pooling_of(tensors: Tensors) -> str:
    """Which of `POOLINGS` the names show.

    Raises:
      BadInput: names of two poolings at once.
    """
    inside = "_backbone.attn_pool.temporal_context."
    found = {
        CUSTOM_GRU if f"{inside}gru_cell." in name else TORCH_GRU for name in tensors if inside in name
    }  # fmt: skip
    if len(found) > 1:
        raise BadInput("both an nn.GRU and TESSERA's own GRU among the tensors: they cannot be of one encoder")
    return found.pop() if found else ATTENTION


def sizes_of(tensors: Tensors, heads: int, output_norm: bool = True) -> EncoderSizes:
    """Reads the sizes from the tensors that show them, then holds every tensor against them.

    Raises:
      BadInput: tensors are missing, unexpected or of another shape, hold NaN or infinity, or cannot have `heads` heads.
    """
    deep = any(name.startswith("dim_reducer.4.") for name in tensors)
    shown = {
        "width": "s2_backbone.embedding.2.bias",
        "feed_forward": f"{layer_name('s2', 0)}.linear1.bias",
        **({"hidden": "dim_reducer.0.bias"} if deep else {}),
        "native_dims": "dim_reducer.4.bias" if deep else "dim_reducer.0.bias",
    }
    if missing := [name for name in shown.values() if name not in tensors]:
        raise BadInput(f"these are not the weights of a TESSERA encoder: {', '.join(missing)} missing")
    layers = 0
    while f"{layer_name('s2', layers)}.linear1.bias" in tensors:
        layers += 1
    sizes = EncoderSizes(
        **{"hidden": 0, **{f: tensors[name].shape[0] if tensors[name].ndim else 0 for f, name in shown.items()}},
        layers=layers,
        heads=heads,
        qk_norm=f"{layer_name('s2', 0)}.q_norm.weight" in tensors,
        pooling=pooling_of(tensors),
        output_norm=output_norm,
    )
    check_tensors(tensors, sizes)
    return sizes


def check_tensors(tensors: Tensors, sizes: EncoderSizes) -> None:
    """Raises BadInput unless `tensors` are exactly those of an encoder of these sizes, and finite."""
    expected = tensor_shapes(sizes)
    if missing := [name for name in expected if name not in tensors]:
        raise BadInput(f"weights without {_some(missing)}: {sizes} needs {len(expected)} tensors")
    if unexpected := [name for name in tensors if name not in expected]:
        raise BadInput(f"weights with unexpected {_some(unexpected)}: {sizes} has no such tensor")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise BadInput(f"tensor {name} is {tensors[name].shape}, but {sizes} makes it {shape}")
        if not np.isfinite(tensors[name]).all():
            raise BadInput(f"tensor {name} holds NaN or infinity: the checkpoint is damaged")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def weights_sha256(tensors: Tensors) -> str:
    """sha256 over name, shape and little-endian float32 bytes of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
