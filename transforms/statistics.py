"""Statistics: what a reader needs to trust a tile, as numbers that add up over its blocks in any order and size."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.modelfile import ModelFile
from transforms.grid import TILE_PX
from transforms.stac_assets import COUNTED, REASON_BITS

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Bins of scales: 32 to a factor of two, the first bits of the float32 itself, hence at most 1/32 wide and never moved.
_BIN_BITS = 18
_LAST_BIN = 2 ** (31 - _BIN_BITS) - 1  # of positive floats
BUCKET = 8  # observations to a bucket of the item's histogram
EPSILON = 1e-3  # what a LayerNorm's epsilon and half precision take from a norm, beyond the rounding of codes
_BITS = tuple(enumerate(REASON_BITS))
_ROWS = 16  # that are squared at once: some MB, which stay in the cache


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of a block or of a tile. Two of them add up to that of both together.

    Attributes:
      reasons: value of the reasons raster -> pixels.
      observations: for each of `COUNTED`, pixels with 0, 1, 2, .. valid observations, among those embedded.
      scales: first bits of a float32 -> pixels whose scale begins with them; see `scale_of_bin`.
      scale_least, scale_most: of the embedded pixels; infinity and 0 where there are none.
      normed: pixels whose norm was looked at. astray: those whose vector is not what a LayerNorm leaves.
    """

    reasons: Mapping[int, int]
    observations: tuple[tuple[int, ...], ...]
    scales: Mapping[int, int]
    scale_least: float
    scale_most: float
    normed: int = 0
    astray: int = 0

    def __add__(self, other: "Statistics") -> "Statistics":
        pairs = zip(self.observations, other.observations, strict=True)
        return Statistics(
            _sum(self.reasons, other.reasons),
            tuple(_padded_sum(a, b) for a, b in pairs),
            _sum(self.scales, other.scales),
            min(self.scale_least, other.scale_least),
            max(self.scale_most, other.scale_most),
            self.normed + other.normed,
            self.astray + other.astray,
        )

    def to_record(self) -> dict[str, Any]:
        """For a receipt: JSON has no infinity, and its keys are texts."""
        seen = self.scale_most > 0
        return {
            "reasons": {str(k): n for k, n in sorted(self.reasons.items())},
            "observations": [list(bins) for bins in self.observations],
            "scales": {str(k): n for k, n in sorted(self.scales.items())},
            "scale_range": [self.scale_least, self.scale_most] if seen else [],
            "normed": self.normed,
            "astray": self.astray,
        }


NONE = Statistics({}, ((), (), ()), {}, math.inf, 0.0)


def statistics_of_record(record: Mapping[str, Any]) -> Statistics:
    """Reads what `Statistics.to_record` gave.

    Raises:
      ValueError: something else.
    """
    try:
        least, most = record["scale_range"] or (math.inf, 0.0)
        found = Statistics(
            {int(k): int(n) for k, n in record["reasons"].items()},
            tuple(tuple(int(n) for n in bins) for bins in record["observations"]),
            {int(k): int(n) for k, n in record["scales"].items()},
            float(least),
            float(most),
            int(record["normed"]),
            int(record["astray"]),
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"no statistics of a block: {e}") from None
    bins = (*found.reasons.values(), *found.scales.values(), *itertools.chain(*found.observations))
    sound = (
        len(found.observations) == len(COUNTED)
        and all(0 <= k <= 255 for k in found.reasons)
        and all(0 <= k <= _LAST_BIN for k in found.scales)
        and max(map(len, found.observations)) <= 2**16  # counts are uint16
        and min((*bins, found.normed, found.astray)) >= 0
    )
    if not sound:
        raise ValueError("no statistics of a block: numbers that no block has")
    return found


def layer_normed(model: ModelFile) -> bool:
    """Whether a model's codes are all of a vector that has passed a LayerNorm without weights (v2, not cut short)."""
    return model.encoder.output_norm and model.profile.dims == model.profile.native_dims


def statistics_of(
    codes: NDArray[np.int8] | None,
    scale: NDArray[np.float32],
    counts: NDArray[np.uint16],
    reasons: NDArray[np.uint8],
    normed: bool,
    pool: Executor,
) -> Statistics:
    """Of a block's rasters.

    Args:
      codes (H, W, dims), scale (H, W) with NaN for no data, counts (H, W, 3), reasons (H, W); codes None where nothing
        is embedded.
      normed: as `layer_normed`.
    """
    flags = np.bincount(reasons.ravel(), minlength=1)
    there = np.isfinite(scale)
    if codes is None or not there.any():
        return dataclasses.replace(NONE, reasons=_sparse(flags))
    inside = scale[there]
    bits = inside.view(np.uint32) >> _BIN_BITS
    first = int(bits.min())
    astray = _strayed(codes, scale, pool) if normed else 0
    return Statistics(
        _sparse(flags),
        tuple(tuple(np.bincount(counts[..., k][there]).tolist()) for k in range(len(COUNTED))),
        {first + k: n for k, n in _sparse(np.bincount(bits - np.uint32(first))).items()},
        float(inside.min()),
        float(inside.max()),
        len(inside) if normed else 0,
        astray,
    )


def _strayed(codes: NDArray[np.int8], scale: NDArray[np.float32], pool: Executor) -> int:
    """Pixels whose dequantised vector is further from mean 0 and norm sqrt(dims) than rounding can take it.

    Rounding moves a value by at most half a scale, hence the mean by that, and the norm by that times sqrt(dims).
    """
    dims = codes.shape[-1]

    def part(row: int) -> int:
        c = codes[row : row + _ROWS].reshape(-1, dims)
        s = scale[row : row + _ROWS].ravel().astype(np.float64)
        squares = np.einsum("pd,pd->p", c, c, dtype=np.int32, casting="unsafe")
        total = np.einsum("pd->p", c, dtype=np.int32, casting="unsafe")
        slack = s / 2 + EPSILON
        off = (np.abs(np.sqrt(squares / dims) * s - 1) > slack) | (np.abs(total / dims * s) > slack)
        return int((np.isfinite(s) & off).sum())

    return sum(pool.map(part, range(0, len(codes), _ROWS)))


def scale_of_bin(number: int) -> tuple[float, float]:
    """Least scale of a bin, and the first one beyond it."""
    edges = (np.array([number, number + 1], np.uint32) << _BIN_BITS).view(np.float32)
    return float(edges[0]), float(edges[1])


def summary_of(statistics: Statistics) -> dict[str, Any]:
    """A tile's statistics as its item has them. Observations and scales are those of embedded pixels.

    A percentile is the least value that this share of the pixels do not exceed; those of scales are the middles of bins
    at most 1/32 wide.
    """
    embedded = sum(statistics.scales.values())
    summary: dict[str, Any] = {"reasons": reasons_by_name(statistics), "embedded": embedded}
    if not embedded:
        return summary
    summary["observations"] = {
        name: {"minimum": _least(bins), "maximum": len(bins) - 1, **_percentiles(dict(enumerate(bins)))}
        for name, bins in zip(COUNTED, statistics.observations, strict=True)
    }
    middles = {k: sum(scale_of_bin(b)) / 2 for k, b in _percentiles(statistics.scales).items()}
    low, high = statistics.scale_least, statistics.scale_most
    summary["scales"] = {"minimum": low, "maximum": high}
    summary["scales"] |= {k: min(max(v, low), high) for k, v in middles.items()}
    if statistics.normed:
        summary["norm"] = {"checked": statistics.normed, "astray": statistics.astray}
    return summary


def band_statistics(statistics: Statistics) -> dict[str, list[dict[str, Any]]]:
    """Per asset what the raster extension has of each band: of all its pixels that are not nodata.

    `observations` has no nodata: pixels that are not embedded count there, with 0.
    """
    embedded = sum(statistics.scales.values())
    bands = []
    for bins in statistics.observations:
        n = [*bins, 0][0] + TILE_PX**2 - embedded, *bins[1:]
        total = sum(v * k for v, k in enumerate(n))
        squares = sum(v * v * k for v, k in enumerate(n))
        buckets = [sum(n[i : i + BUCKET]) for i in range(0, max(len(n), 3 * BUCKET), BUCKET)]
        figures = {
            "minimum": _least(n),
            "maximum": len(n) - 1,
            "mean": total / TILE_PX**2,
            "stddev": math.sqrt(squares * TILE_PX**2 - total**2) / TILE_PX**2,
        }
        histogram = {"count": len(buckets), "min": 0, "max": BUCKET * len(buckets), "buckets": buckets}
        bands.append({"statistics": figures, "histogram": histogram})
    if not embedded:
        return {"observations": bands}
    figures = {"minimum": statistics.scale_least, "maximum": statistics.scale_most}
    return {"observations": bands, "scales": [{"statistics": figures | {"valid_percent": 100 * embedded / TILE_PX**2}}]}


def block_columns(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, pa.DataType, list[Any]]]:
    """Name, type and values of the columns that blocks.parquet has of its blocks' records, null where one is empty.

    Histograms of observations begin with none of them, those of scales at bin `scales_from` (`scale_of_bin`).
    """
    rows = [_block_row(statistics_of_record(r)) if r else {} for r in records]
    bins, reasons = pa.list_(pa.int64()), ("clear", *(name for name, _ in REASON_BITS))
    types = {f"reason_{name}": pa.int64() for name in reasons} | {f"observations_{name}": bins for name in COUNTED}
    types |= {"scales_from": pa.int64(), "scales": bins, "scale_minimum": pa.float32(), "scale_maximum": pa.float32()}
    types |= {"norms_checked": pa.int64(), "norms_astray": pa.int64()}
    return [(name, kind, [row.get(name) for row in rows]) for name, kind in types.items()]


def _block_row(statistics: Statistics) -> dict[str, Any]:
    row: dict[str, Any] = {f"reason_{name}": n for name, n in reasons_by_name(statistics).items()}
    row |= {f"observations_{name}": list(bins) for name, bins in zip(COUNTED, statistics.observations, strict=True)}
    row |= {"norms_checked": statistics.normed, "norms_astray": statistics.astray}
    if statistics.scales:
        row |= {"scales_from": min(statistics.scales), "scales": _dense(statistics)}
        row |= {"scale_minimum": statistics.scale_least, "scale_maximum": statistics.scale_most}
    return row


def _dense(statistics: Statistics) -> list[int]:
    numbers = statistics.scales
    return [numbers.get(k, 0) for k in range(min(numbers), max(numbers) + 1)]


def reasons_by_name(statistics: Statistics) -> dict[str, int]:
    """Pixels with each flag, and those with none ("clear")."""
    named = {name: sum(n for v, n in statistics.reasons.items() if v >> bit & 1) for bit, (name, _) in _BITS}
    return {"clear": statistics.reasons.get(0, 0), **named}


def of_tile(blocks: Iterable[Statistics], outside: int) -> Statistics:
    """Those of all blocks together; what no block holds has the value `outside`, as the raster reads there."""
    total = sum(blocks, NONE)
    rest = TILE_PX**2 - sum(total.reasons.values())
    return total + dataclasses.replace(NONE, reasons={outside: rest} if rest else {})


def _least(bins: Sequence[int]) -> int:
    return next(v for v, n in enumerate(bins) if n)


def _percentiles(bins: Mapping[int, int]) -> dict[str, int]:
    total, wanted, found, seen = sum(bins.values()), list(PERCENTILES), {}, 0
    for value, n in sorted(bins.items()):
        seen += n
        while wanted and seen * 100 >= wanted[0] * total:
            found[f"p{wanted.pop(0):02d}"] = value
    return found


def _sparse(bins: NDArray[np.int64]) -> dict[int, int]:
    return {int(k): int(bins[k]) for k in np.flatnonzero(bins)}


def _sum(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
    return {k: a.get(k, 0) + b.get(k, 0) for k in a.keys() | b.keys()}


def _padded_sum(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    n = max(len(a), len(b))
    return tuple(x + y for x, y in zip([*a, *[0] * (n - len(a))], [*b, *[0] * (n - len(b))], strict=True))
