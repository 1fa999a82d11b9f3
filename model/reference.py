"""Reference: every encoder written out in NumPy, slow and plain, as a second opinion on a model file."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model.parity import Inputs, Outputs
from model.profile import Profile
from model.quantise import quantise
from model.weights import (
    CUSTOM_GRU,
    LAYER_NORM_EPSILON,
    QK_NORM_EPSILON,
    TORCH_GRU,
    EncoderSizes,
    gru_name,
    layer_name,
)

Array = npt.NDArray[np.float64]
Weights = Mapping[str, npt.NDArray[Any]]


def encode(weights: Weights, sizes: EncoderSizes, profile: Profile, inputs: Inputs) -> Outputs:
    """Pixel by pixel and head by head in float64; only the quantiser is float32, as in the graph.

    Args:
      weights: tensors by the names of `weights.tensor_shapes`.
      profile: where the constants are taken from, not from the model file's graph.
      inputs: raw numbers as `modelfile.INPUTS` describes them.
    """
    native = encode_native(weights, sizes, profile, inputs)
    embedding = native[:, : profile.dims].astype(np.float32)
    codes, scale = quantise(embedding, profile.scale_floor, profile.scale_floor_of)
    return Outputs(codes, scale, embedding)


def encode_native(weights: Weights, sizes: EncoderSizes, profile: Profile, inputs: Inputs) -> Array:
    """The encoder's whole output (N, native_dims), before it is cut to the values that are stored."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    days = _day_encoding(sizes.width)
    rows = []
    for s2, s2_doy, s1, s1_orbit, s1_doy in zip(*inputs.values(), strict=True):
        x2 = _standardised(s2, s2_doy, profile.s2_mean, profile.s2_std, profile)
        x1 = np.zeros((len(s1), 2))
        for orbit, mean, std in (
            (0, profile.s1_ascending_mean, profile.s1_ascending_std),
            (1, profile.s1_descending_mean, profile.s1_descending_std),
        ):
            of = s1_orbit == orbit
            x1[of] = _standardised(s1[of], s1_doy[of], mean, std, profile)
        z = np.concatenate([_backbone(w, "s2", x2, days[s2_doy], sizes), _backbone(w, "s1", x1, days[s1_doy], sizes)])
        z = _linear(z, w, "dim_reducer.0")
        if sizes.hidden:
            z = _linear(np.maximum(_layer_norm(z, w, "dim_reducer.1"), 0), w, "dim_reducer.4")
        if sizes.output_norm:
            z = (z - z.mean()) / np.sqrt(z.var() + LAYER_NORM_EPSILON)
        rows.append(z)
    return np.stack(rows)


def _day_encoding(width: int) -> Array:
    """(367, width). The angle is float32, as the reference's is: at day 366 that alone is worth 3e-5."""
    step = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(10_000.0) / width))
    angle = (np.arange(367, dtype=np.float32)[:, None] * step).astype(np.float64)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(367, width)


def _standardised(
    raw: npt.NDArray[Any], doy: npt.NDArray[Any], mean: tuple[float, ...], std: tuple[float, ...], profile: Profile
) -> Array:
    x = (raw.astype(np.float64) - mean) / (np.asarray(std) + profile.std_epsilon)
    x[doy == 0] = 0
    return x


def _backbone(w: Mapping[str, Array], modality: str, x: Array, days: Array, sizes: EncoderSizes) -> Array:
    name = f"{modality}_backbone"
    x = np.maximum(_linear(x, w, f"{name}.embedding.0"), 0)
    x = _linear(x, w, f"{name}.embedding.2") + days
    for i in range(sizes.layers):
        layer = layer_name(modality, i)
        x = _layer_norm(x + _linear(_attention(w, x, layer, sizes), w, f"{layer}.out_proj"), w, f"{layer}.norm1")
        wide = np.maximum(_linear(x, w, f"{layer}.linear1"), 0)
        x = _layer_norm(x + _linear(wide, w, f"{layer}.linear2"), w, f"{layer}.norm2")
    context = x
    if sizes.pooling == CUSTOM_GRU:
        context = _layer_norm(_custom_gru(w, x, gru_name(modality)), w, f"{name}.attn_pool.layer_norm")
    elif sizes.pooling == TORCH_GRU:
        context = _torch_gru(w, x, f"{name}.attn_pool.temporal_context")
    share = _softmax(_linear(context, w, f"{name}.attn_pool.query")[:, 0])
    return share @ x


def _custom_gru(w: Mapping[str, Array], x: Array, cell: str) -> Array:
    """TESSERA's own cell (`encoders.CustomGRU` has the equations): reset before the product, z takes the new state."""

    def gate(letter: str, token: Array, state: Array) -> Array:
        y: Array = w[f"{cell}.W_i{letter}.weight"] @ token + w[f"{cell}.W_h{letter}.weight"] @ state
        return y + w[f"{cell}.b_{letter}"]

    h, states = np.zeros(x.shape[1]), []
    for token in x:
        r, z = _sigmoid(gate("r", token, h)), _sigmoid(gate("z", token, h))
        h = (1 - z) * h + z * np.tanh(gate("h", token, r * h))
        states.append(h)
    return np.stack(states)


def _torch_gru(w: Mapping[str, Array], x: Array, name: str) -> Array:
    """nn.GRU, as torch's own page has it: gates r, z, n stacked; reset after the product; z keeps the old state."""
    h, states = np.zeros(x.shape[1]), []
    for token in x:
        ir, iz, inn = np.split(w[f"{name}.weight_ih_l0"] @ token + w[f"{name}.bias_ih_l0"], 3)
        hr, hz, hn = np.split(w[f"{name}.weight_hh_l0"] @ h + w[f"{name}.bias_hh_l0"], 3)
        r, z = _sigmoid(ir + hr), _sigmoid(iz + hz)
        h = (1 - z) * np.tanh(inn + r * hn) + z * h
        states.append(h)
    return np.stack(states)


def _attention(w: Mapping[str, Array], x: Array, layer: str, sizes: EncoderSizes) -> Array:
    q, k, v = (_linear(x, w, f"{layer}.{p}_proj") for p in "qkv")
    mixed = np.zeros_like(x)
    for head in range(sizes.heads):
        of = slice(head * sizes.head_width, (head + 1) * sizes.head_width)
        a, b = q[:, of], k[:, of]
        if sizes.qk_norm:
            a, b = _rms_norm(a, w[f"{layer}.q_norm.weight"]), _rms_norm(b, w[f"{layer}.k_norm.weight"])
        mixed[:, of] = _softmax(a @ b.T / math.sqrt(sizes.head_width)) @ v[:, of]
    return mixed


def _linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    y: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return y


def _layer_norm(x: Array, w: Mapping[str, Array], name: str) -> Array:
    apart = x - x.mean(-1, keepdims=True)
    y: Array = apart / np.sqrt(x.var(-1, keepdims=True) + LAYER_NORM_EPSILON) * w[f"{name}.weight"] + w[f"{name}.bias"]
    return y


def _rms_norm(x: Array, weight: Array) -> Array:
    y: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + QK_NORM_EPSILON) * weight
    return y


def _sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    y: Array = e / e.sum(-1, keepdims=True)
    return y
