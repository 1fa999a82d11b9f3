import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.quantise import NO_DATA, dequantise, quantise
from transforms.grid import TILE_PX
from transforms.stac_assets import REASON_BITS
from transforms.statistics import (
    BUCKET,
    EPSILON,
    NONE,
    PERCENTILES,
    band_statistics,
    of_tile,
    scale_of_bin,
    statistics_of,
    statistics_of_record,
    summary_of,
)

POOL = ThreadPoolExecutor(2)
OUTSIDE = 8


def block(rng, height=40, width=24, dims=8, share=0.7, spread=1.0):
    """Codes, scale, counts and reasons as a block has them: vectors of mean 0 and norm sqrt(dims), holes."""
    x = rng.normal(size=(height, width, dims))
    x -= x.mean(-1, keepdims=True)
    x /= x.std(-1, keepdims=True)
    codes, scale = quantise((x * spread).astype(np.float32))
    there = rng.random((height, width)) < share
    codes[~there], scale[~there] = NO_DATA, np.nan
    counts = np.where(there[..., None], rng.integers(0, 60, (height, width, 3)), 0).astype(np.uint16)
    reasons = np.where(there, rng.choice([0, 2, 34], (height, width)), rng.choice([1, 8], (height, width)))
    return codes, scale, counts, reasons.astype(np.uint8)


def of(rasters, normed=True):
    return statistics_of(*rasters, normed, POOL)


def cut(rasters, rows, cols):
    return tuple(a[rows, cols] for a in rasters)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 39), st.integers(1, 23))
def test_blocks_of_any_size_and_order_add_up_to_the_same(seed, row, col):
    rasters = block(np.random.default_rng(seed))
    whole = of(rasters)
    parts = [
        of(cut(rasters, rows, cols))
        for cols in (slice(col, None), slice(0, col))
        for rows in (slice(0, row), slice(row, None))
    ]
    assert sum(parts, NONE) == sum(reversed(parts), NONE) == whole + NONE


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_record_is_json_and_is_read_as_it_was_written(seed, share):
    statistics = of(block(np.random.default_rng(seed), 8, 8, share=share))
    assert statistics_of_record(json.loads(json.dumps(statistics.to_record(), allow_nan=False))) == statistics


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"reasons": 1},
        {**NONE.to_record(), "observations": []},
        {**NONE.to_record(), "observations": [[1], [1], [-1]]},
        {**NONE.to_record(), "observations": [[1] * 70_000, [1], [1]]},
        {**NONE.to_record(), "scales": {"99999999999": 1}},
        {**NONE.to_record(), "reasons": {"256": 1}},
        {**NONE.to_record(), "reasons": {"a": 1}},
    ],
)
def test_what_are_no_statistics_is_refused(record):
    with pytest.raises(ValueError, match=r"no statistics of a block|invalid literal"):
        statistics_of_record(record)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(0.01, 1), st.floats(1e-6, 1e4))
def test_the_summary_is_what_numpy_finds_in_the_pixels(seed, share, spread):
    _, scale, counts, reasons = rasters = block(np.random.default_rng(seed), share=share, spread=spread)
    there = np.isfinite(scale)
    summary = summary_of(of(rasters, normed=False))
    assert summary["embedded"] == there.sum()
    assert "norm" not in summary
    for bit, (name, _) in enumerate(REASON_BITS):
        assert summary["reasons"][name] == ((reasons >> bit) & 1).sum()
    assert summary["reasons"]["clear"] == (reasons == 0).sum()
    if not there.any():
        return
    for k, name in enumerate(("s2", "s1_ascending", "s1_descending")):
        seen = np.sort(counts[..., k][there])
        found = summary["observations"][name]
        assert (found["minimum"], found["maximum"]) == (seen[0], seen[-1])
        for q in PERCENTILES:
            assert found[f"p{q:02d}"] == seen[-(-q * len(seen) // 100) - 1]
    scales = np.sort(scale[there])
    found = summary["scales"]
    assert (found["minimum"], found["maximum"]) == (scales[0], scales[-1])
    for q in PERCENTILES:
        assert found[f"p{q:02d}"] == pytest.approx(scales[-(-q * len(scales) // 100) - 1], rel=1 / 64)


@given(hnp.arrays(np.float32, 5, elements=st.floats(2.0**-100, 2.0**100, width=32)))
def test_every_scale_lies_in_the_bin_that_it_is_counted_in(values):
    rasters = (np.ones((1, 5, 2), np.int8), values[None], np.ones((1, 5, 3), np.uint16), np.zeros((1, 5), np.uint8))
    bins = of(rasters, normed=False).scales
    for number, n in bins.items():
        low, high = scale_of_bin(number)
        assert ((values >= low) & (values < high)).sum() == n
        assert high / low <= 1 + 1 / 32
    assert sum(bins.values()) == 5


def test_the_norm_check_is_met_by_every_vector_that_a_layernorm_leaves():
    for dims, spread in ((16, 1), (128, 1)):
        rasters = block(np.random.default_rng(dims), dims=dims, spread=spread)
        statistics = of(rasters)
        assert statistics.normed == np.isfinite(rasters[1]).sum() > 0
        assert statistics.astray == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda codes, scale: (codes, scale * np.float32(1.2)),
        lambda codes, scale: (np.abs(codes), scale),  # of the same norm, and no mean of 0
        lambda codes, scale: (np.roll(codes, 1, 0), scale),  # the neighbour's scale
        lambda codes, scale: (codes // 2, scale),
    ],
)
def test_the_norm_check_finds_vectors_that_are_none_of_a_layernorm(spoil):
    codes, scale, counts, reasons = block(np.random.default_rng(3), dims=128, share=1.0)
    codes, scale = spoil(codes, scale)
    statistics = statistics_of(codes, scale, counts, reasons, True, POOL)
    x = dequantise(codes, scale).astype(np.float64)
    off = scale / 2 + EPSILON
    slow = (np.abs(np.sqrt((x * x).mean(-1)) - 1) > off) | (np.abs(x.mean(-1)) > off)
    assert statistics.astray == slow.sum() > 0.5 * slow.size


def test_a_block_without_any_embedding_has_reasons_alone():
    scale, counts = np.full((4, 4), np.nan, np.float32), np.zeros((4, 4, 3), np.uint16)
    empty = statistics_of(None, scale, counts, np.full((4, 4), 1, np.uint8), True, POOL)
    assert empty.reasons == {1: 16}
    tile = of_tile([empty], OUTSIDE)
    assert summary_of(tile) == {
        "embedded": 0,
        "reasons": {**dict.fromkeys((n for n, _ in REASON_BITS), 0), "clear": 0, "no_optical": 16,
                    "outside": TILE_PX**2 - 16},
    }  # fmt: skip
    assert "scales" not in band_statistics(tile)


def test_band_statistics_are_those_of_the_whole_raster():
    _, scale, counts, _ = rasters = block(np.random.default_rng(5), 64, 64)
    bands = band_statistics(of_tile([of(rasters)], OUTSIDE))
    for k, band in enumerate(bands["observations"]):
        pixels = counts[..., k].astype(np.float64).ravel()
        rest = TILE_PX**2 - pixels.size
        mean = pixels.sum() / TILE_PX**2
        stddev = np.sqrt((((pixels - mean) ** 2).sum() + rest * mean**2) / TILE_PX**2)
        assert band["statistics"]["minimum"] == 0
        assert band["statistics"]["maximum"] == pixels.max()
        assert band["statistics"]["mean"] == pytest.approx(mean, rel=1e-12)
        assert band["statistics"]["stddev"] == pytest.approx(stddev, rel=1e-9)
        histogram = band["histogram"]
        edges = np.linspace(histogram["min"], histogram["max"], histogram["count"] + 1)
        assert np.diff(edges).max() == BUCKET
        want, _ = np.histogram(pixels, edges)
        want[0] += rest
        assert histogram["buckets"] == want.tolist()
    assert bands["scales"][0]["statistics"]["valid_percent"] == pytest.approx(
        100 * np.isfinite(scale).sum() / TILE_PX**2
    )
