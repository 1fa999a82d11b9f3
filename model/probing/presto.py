"""Presto: the published encoder of nasaharvest, as a baseline on the same series (arXiv 2304.14065, MIT)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.errors import BadInput
from model.probing import baselines
from model.profile import S2_BANDS
from model.shards import Batch

# Bands of a step in Presto's order (nasaharvest/presto single_file_presto.py), grouped as its tokens are.
BANDS = ("VV", "VH", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12",
         "temperature", "precipitation", "elevation", "slope", "NDVI")  # fmt: skip
GROUPS = {"S1": (0, 1), "S2_RGB": (2, 3, 4), "S2_Red_Edge": (5, 6, 7), "S2_NIR_10m": (8,), "S2_NIR_20m": (9,),
          "S2_SWIR": (10, 11), "ERA5": (12, 13), "SRTM": (14, 15), "NDVI": (16,)}  # fmt: skip
STILL = "SRTM"  # one token for all steps, without month and position
# (x + shift) / scale of every band (presto/dataops/pipelines/s1_s2_era5_srtm.py); -272.15 is as published.
SHIFT = np.array([25, 25, *[0] * 10, -272.15, 0, 0, 0, 0], np.float32)
SCALE = np.array([25, 25, *[1e4] * 10, 35, 0.03, 2000, 50, 1], np.float32)
SHAPES = {("latlon", ".weight"): (128, 3), ("channel", ".weight"): (10, 32), ("pos", ""): (1, 24, 64)}
NO_COVER = 9  # Dynamic World's class "not known", whose tokens are left out
HEADS = 8  # config/default.json; everything else can be seen in the weights
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default
CHUNK = 256

NOT_KNOWN = "the set has no coordinates, and Presto takes a pixel's place always"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What Presto sees of N pixels in T steps of about a month.

    Attributes:
      x: float32 (N, T, 17) in the order of `BANDS`, NaN where a band is not known at a step: its group's token is left
        out then. dB; DN; K, m; m, degrees; NDVI is made of B08 and B04, whatever stands there.
      month: int64 (N, T) 0..11. cover: int64 (N, T) Dynamic World's class, `NO_COVER` where it is not known.
      lat, lon: float64 (N,) degrees.
    """

    x: NDArray[np.float32]
    month: NDArray[np.int64]
    cover: NDArray[np.int64]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]


def inputs_of(batch: Batch, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> Inputs:
    """Sentinel-2 and Sentinel-1 of records as Presto takes them: monthly medians, nothing else known.

    Raises:
      BadInput: a record without coordinates.
    """
    if np.isnan(lat).any() or np.isnan(lon).any():
        raise BadInput(NOT_KNOWN)
    n = len(batch)
    x = np.full((n, baselines.MONTHS, len(BANDS)), np.nan, np.float32)
    s2 = baselines.medians(batch.s2, batch.s2_valid, batch.s2_doy)
    x[..., 2:12] = s2[..., [S2_BANDS.index(band) for band in BANDS[2:12]]]
    radar = baselines.medians(batch.s1, batch.s1_valid, batch.s1_doy)
    x[..., :2] = (radar / 200 - 50) / 2  # the stored int16 back to decibels
    x[..., 16] = 0 * x[..., 8]
    month = np.broadcast_to(np.arange(baselines.MONTHS), (n, baselines.MONTHS))
    return Inputs(x, month, np.full(month.shape, NO_COVER, np.int64), lat, lon)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The encoder's tensors of a published state dict.

    Raises:
      BadInput: no such file, or not Presto's weights.
    """
    if not Path(path).is_file():
        raise BadInput(f"no weights of Presto at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        shapes = [tuple(weights[f"{name}_embed{part}"].shape) for name, part in SHAPES]
    except Exception as e:
        raise BadInput(f"{path} does not hold Presto's weights ({type(e).__name__})") from None
    if shapes != list(SHAPES.values()):
        raise BadInput(f"{path} holds weights of another size than the published ones")
    return weights


def embed(weights: Mapping[str, Tensor], inputs: Inputs) -> NDArray[np.float32]:
    """The mean of the encoder's tokens, normalised: (N, 128) float32.

    Tokens of what is not known are left out of attention and mean, which is what taking them from the sequence does.
    """
    parts = [
        _forward(weights, Inputs(*(getattr(inputs, f.name)[a : a + CHUNK] for f in dataclasses.fields(Inputs))))
        for a in range(0, len(inputs.x), CHUNK)
    ]
    return np.concatenate(parts)


@torch.no_grad()
def _forward(w: Mapping[str, Tensor], inputs: Inputs) -> NDArray[np.float32]:
    x = (torch.from_numpy(inputs.x) + torch.from_numpy(SHIFT)) / torch.from_numpy(SCALE)
    red, near = x[..., 4], x[..., 8]
    total = near + red
    x[..., 16] = torch.where(total > 0, (near - red) / total, 0 * total)
    n, steps = x.shape[:2]
    place = w["pos_embed"][0, :steps].expand(n, -1, -1)  # (n, T, 64)
    month = w["month_embed.weight"][torch.from_numpy(np.ascontiguousarray(inputs.month))]  # (n, T, 32)

    def where(channel: int) -> Tensor:
        return torch.cat([month, w["channel_embed.weight"][channel].expand(n, steps, -1), place], dim=-1)

    tokens, known = [], []
    for channel, (name, bands) in enumerate(GROUPS.items()):
        part = x[..., list(bands)]
        there = ~part.isnan().any(-1)
        token = F.linear(part.nan_to_num(), w[f"eo_patch_embed.{name}.weight"], w[f"eo_patch_embed.{name}.bias"])
        if name == STILL:
            still = torch.zeros_like(token[:, :1])
            still[..., 32:64] = w["channel_embed.weight"][channel]
            tokens.append(token[:, :1] + still)
            known.append(there[:, :1])
        else:
            tokens.append(token + where(channel))
            known.append(there)
    cover = torch.from_numpy(np.ascontiguousarray(inputs.cover))
    tokens.append(w["dw_embed.weight"][cover] + where(len(GROUPS)))
    known.append(cover != NO_COVER)
    lat, lon = (torch.from_numpy(np.deg2rad(v)).float() for v in (inputs.lat, inputs.lon))
    sphere = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)
    here = F.linear(sphere, w["latlon_embed.weight"], w["latlon_embed.bias"])[:, None]
    z = torch.cat([here, *tokens], dim=1)  # (n, 1 + tokens, 128)
    kept = torch.cat([torch.ones(n, 1, dtype=torch.bool), *known], dim=1)
    layer = 0
    while f"blocks.{layer}.norm1.weight" in w:
        z = _block(w, f"blocks.{layer}.", z, kept)
        layer += 1
    mean = (z * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
    out: NDArray[np.float32] = _norm(w, "norm", mean).numpy()
    return out


def _block(w: Mapping[str, Tensor], name: str, z: Tensor, kept: Tensor) -> Tensor:
    n, t, width = z.shape
    qkv = F.linear(_norm(w, f"{name}norm1", z), w[f"{name}attn.qkv.weight"], w[f"{name}attn.qkv.bias"])
    q, k, v = qkv.reshape(n, t, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=kept[:, None, None, :]).transpose(1, 2).reshape(z.shape)
    z = z + F.linear(seen, w[f"{name}attn.proj.weight"], w[f"{name}attn.proj.bias"])
    inner = F.linear(_norm(w, f"{name}norm2", z), w[f"{name}mlp.fc1.weight"], w[f"{name}mlp.fc1.bias"])
    return z + F.linear(F.gelu(inner), w[f"{name}mlp.fc2.weight"], w[f"{name}mlp.fc2.bias"])


def _norm(w: Mapping[str, Tensor], name: str, z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], NORM_EPSILON)
