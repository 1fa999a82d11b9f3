"""Encoders: every published TESSERA encoder in PyTorch, from raw digital numbers to codes."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.profile import Profile
from model.weights import (
    CUSTOM_GRU,
    GATES,
    LAYER_NORM_EPSILON,
    MODALITIES,
    QK_NORM_EPSILON,
    TORCH_GRU,
    EncoderSizes,
    Tensors,
    check_tensors,
)

DAYS = 367  # day 0 (an absent observation) to day 366


def day_table(width: int) -> Tensor:
    """Sinusoidal encoding of the raw day of year, base 10,000, sines in even columns: float32 (DAYS, width).

    The float32 arithmetic is the reference's: at day 366 an angle from exact arithmetic differs by 3e-5.
    """
    step = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    angle = torch.arange(DAYS, dtype=torch.float32)[:, None] * step
    return torch.stack([angle.sin(), angle.cos()], -1).reshape(DAYS, width)


class Layer(nn.Module):
    """A transformer layer, norm after the residual, ReLU inside. Every row is an ordinary token: there is no mask."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        d = sizes.width
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        if sizes.qk_norm:
            self.q_norm: nn.Module = nn.RMSNorm(sizes.head_width, eps=QK_NORM_EPSILON)
            self.k_norm: nn.Module = nn.RMSNorm(sizes.head_width, eps=QK_NORM_EPSILON)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.linear1 = nn.Linear(d, sizes.feed_forward)
        self.linear2 = nn.Linear(sizes.feed_forward, d)
        self.norm1 = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)
        self.norm2 = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, d)
        n, t, d = x.shape
        q, k, v = (p(x).view(n, t, self.heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))  # (N, T, H, d/H)
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))  # (N, H, T, d/H)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)  # (N, T, d)
        x = self.norm1(x + self.out_proj(mixed))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))  # type: ignore[no-any-return]


class CustomGRU(nn.Module):
    """TESSERA's own recurrent cell over a series, from a state of zeros.

    For each token x and the state h before it:

        r  = sigmoid(W_ir x + W_hr h + b_r)
        z  = sigmoid(W_iz x + W_hz h + b_z)
        n  = tanh(W_ih x + W_hh (r * h) + b_h)
        h' = (1 - z) * h + z * n

    This is not nn.GRU: there the reset gate comes after the product with h, and z keeps the old state. An archive made
    with the one in place of the other has 15 % of its codes right at a cosine of 0.997 (facts/tessera.md, trap T4).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        for gate in GATES:
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.zeros(width)))
            for side in ("i", "h"):
                self.add_module(f"W_{side}{gate}", nn.Linear(width, width, bias=False))
        self.b_r: Tensor
        self.b_z: Tensor
        self.b_h: Tensor
        self.W_hr: nn.Module
        self.W_hz: nn.Module
        self.W_hh: nn.Module

    def forward(self, x: Tensor) -> Tensor:  # (N, T, d)
        r, z, n = (self.get_submodule(f"W_i{g}")(x) + self.get_parameter(f"b_{g}") for g in GATES)  # all tokens at once
        h = torch.zeros_like(x[:, 0])
        states = []
        for t in range(x.shape[1]):
            reset = torch.sigmoid(r[:, t] + self.W_hr(h))
            update = torch.sigmoid(z[:, t] + self.W_hz(h))
            h = (1 - update) * h + update * torch.tanh(n[:, t] + self.W_hh(reset * h))
            states.append(h)
        return torch.stack(states, 1)  # (N, T, d)


class TemporalContext(nn.Module):
    """The custom GRU under the name that published checkpoints give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru_cell = CustomGRU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru_cell(x)  # type: ignore[no-any-return]


class Pool(nn.Module):
    """The mean of the tokens over time, weighted by a softmax of one learned query.

    The query is put to the tokens themselves, or to what a GRU makes of them in their order; the mean is of the tokens
    in either case, never of the GRU's states.
    """

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        d = sizes.width
        self.query = nn.Linear(d, 1)
        self.pooling = sizes.pooling
        if sizes.pooling == TORCH_GRU:
            self.temporal_context: nn.Module = nn.GRU(d, d, batch_first=True)
        elif sizes.pooling == CUSTOM_GRU:
            self.temporal_context = TemporalContext(d)
            self.layer_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, d)
        context = x
        if self.pooling == TORCH_GRU:
            context = self.temporal_context(x)[0]
        elif self.pooling == CUSTOM_GRU:
            context = self.layer_norm(self.temporal_context(x))
        return (self.query(context).softmax(1) * x).sum(1)  # type: ignore[no-any-return]  # (N, d)


class Backbone(nn.Module):
    """One sensor's series to one vector."""

    def __init__(self, channels: int, sizes: EncoderSizes) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(channels, sizes.width), nn.ReLU(), nn.Linear(sizes.width, sizes.width))
        self.transformer_encoder = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.attn_pool = Pool(sizes)
        self.register_buffer("day_table", day_table(sizes.width), persistent=False)
        self.day_table: Tensor

    def tokens(self, x: Tensor, doy: Tensor) -> Tensor:
        """Standardised (N, T, channels) and days as long (N, T): each row under its day, (N, T, d)."""
        return self.embedding(x) + self.day_table[doy]  # type: ignore[no-any-return]

    def pooled(self, tokens: Tensor) -> Tensor:
        """(N, T, d) through the layers and over time: (N, d)."""
        for layer in self.transformer_encoder:
            tokens = layer(tokens)
        return self.attn_pool(tokens)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, doy: Tensor) -> Tensor:  # (N, T, channels) standardised, (N, T) long
        return self.pooled(self.tokens(x, doy))  # (N, d)


class Encoder(nn.Module):
    """Two backbones, a reducer, and the profile's constants around them.

    A row whose day is 0 is an absent observation: zeros after standardisation, whatever numbers it carries. Rows of
    that kind are what most profiles put in place of a modality without observations.
    """

    def __init__(self, sizes: EncoderSizes, profile: Profile) -> None:
        super().__init__()
        d = sizes.width
        self.sizes, self.profile = sizes, profile
        self.s2_backbone = Backbone(MODALITIES["s2"], sizes)
        self.s1_backbone = Backbone(MODALITIES["s1"], sizes)
        if sizes.hidden:
            self.dim_reducer = nn.Sequential(
                nn.Linear(2 * d, sizes.hidden),
                nn.LayerNorm(sizes.hidden, eps=LAYER_NORM_EPSILON),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.Linear(sizes.hidden, sizes.native_dims),
            )
        else:
            self.dim_reducer = nn.Sequential(nn.Linear(2 * d, sizes.native_dims))
        for name, numbers in {
            "s2_mean": profile.s2_mean,
            "s2_std": profile.s2_std,
            "s1_mean": (profile.s1_ascending_mean, profile.s1_descending_mean),  # rows: by orbit, 0 ascending
            "s1_std": (profile.s1_ascending_std, profile.s1_descending_std),
        }.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)
        self.s2_mean: Tensor
        self.s2_std: Tensor
        self.s1_mean: Tensor
        self.s1_std: Tensor

    def embed(self, x2: Tensor, doy2: Tensor, x1: Tensor, doy1: Tensor) -> Tensor:
        """Standardised float32 (N, T2, 10) and (N, T1, 2), days as long (N, T): float32 (N, native_dims)."""
        return self.reduced(torch.cat([self.s2_backbone(x2, doy2), self.s1_backbone(x1, doy1)], -1))

    def reduced(self, both: Tensor, keep: Tensor | None = None) -> Tensor:
        """Both pooled series side by side, (N, 2d), to the embedding, (N, native_dims).

        Args:
          keep: (N, hidden) factors in place of the reducer's own dropout: 0 for what is dropped. A training that draws
            them by key has the same ones on any number of ranks, and again when it computes a batch twice.
        """
        z = both
        for part in self.dim_reducer:
            z = part(z) if keep is None or not isinstance(part, nn.Dropout) else z * keep
        return F.layer_norm(z, z.shape[-1:], eps=LAYER_NORM_EPSILON) if self.sizes.output_norm else z

    def embed_tokens(self, tokens2: Tensor, tokens1: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens of both sensors, (N, T2, d) and (N, T1, d), to the embedding; `keep` as in `reduced`."""
        return self.reduced(torch.cat([self.s2_backbone.pooled(tokens2), self.s1_backbone.pooled(tokens1)], -1), keep)

    def raw_tokens(
        self, s2: Tensor, s2_doy: Tensor, s1: Tensor, s1_orbit: Tensor, s1_doy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The contract's raw inputs as tokens in front of the first layer: (N, T2, d), (N, T1, d).

        Here two views may be mixed: every token has its whole day by now, and no layer has seen another one.
        """
        s2_doy, s1_doy, orbit = s2_doy.long(), s1_doy.long(), s1_orbit.long()
        x2 = self.standardise(s2, s2_doy, self.s2_mean, self.s2_std)
        x1 = self.standardise(s1, s1_doy, self.s1_mean[orbit], self.s1_std[orbit])
        return self.s2_backbone.tokens(x2, s2_doy), self.s1_backbone.tokens(x1, s1_doy)

    def standardise(self, raw: Tensor, doy: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Raw numbers (N, T, channels) to the type of `mean`, float32 or float64; rows of day 0 to zeros."""
        x = (raw.to(mean.dtype) - mean) / (std + self.profile.std_epsilon)
        return torch.where((doy > 0)[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))

    def forward(
        self, s2: Tensor, s2_doy: Tensor, s1: Tensor, s1_orbit: Tensor, s1_doy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The model file's own contract: raw (N, T2, 10), (N, T2), (N, T1, 2), (N, T1), (N, T1) to codes.

        Returns:
          codes int8 (N, dims), scale float32 (N,), embedding float32 (N, dims).
        """
        z = self.embed_tokens(*self.raw_tokens(s2, s2_doy, s1, s1_orbit, s1_doy))
        z = z[:, : self.profile.dims]  # (N, dims); cut before the scale is made
        largest, floor = z.abs().amax(-1), self.profile.scale_floor  # (N,)
        if self.profile.scale_floor_of == "scale":
            scale = (largest / self.profile.code_max).clamp(min=floor)
        else:
            scale = largest.clamp(min=floor) / self.profile.code_max
        codes = (z / scale[:, None]).round().clamp(self.profile.code_min, self.profile.code_max)  # half to even
        return codes.to(torch.int8), scale, z


def encoder_of(tensors: Tensors, sizes: EncoderSizes, profile: Profile) -> Encoder:
    """An encoder in eval mode with these weights.

    Raises:
      BadInput: the tensors are not those of `sizes`.
    """
    check_tensors(tensors, sizes)
    encoder = Encoder(sizes, profile)
    encoder.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
    return encoder.eval()
