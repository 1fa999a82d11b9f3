import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiff_files import FEW, some_pixels, whole_header, write

from transforms import tiff
from transforms.tiff import Window, plan, tiles_of
from transforms.tiff_decode import decode


def spread(header, rng, gaps):
    """The header of a file whose tiles lie in some order with some gaps, a few of them not stored."""
    shape = header.counts.shape
    counts = rng.integers(1, 3000, shape).astype(np.uint64)
    counts[rng.random(shape) < 0.2] = 0
    offsets = np.zeros(shape, np.uint64)
    at = 5000 + (1 << 33)  # past what 32 bits hold
    for tile in rng.permutation(counts.size) if rng.random() < 0.5 else range(counts.size):
        i, j = divmod(int(tile), shape[1])
        if counts[i, j]:
            offsets[i, j] = at
            at += int(counts[i, j]) + int(rng.choice(gaps))
    return dataclasses.replace(header, offsets=offsets, counts=counts)


@settings(FEW, max_examples=100)
@given(st.integers(0, 2**32), st.data())
def test_a_plan_holds_every_stored_tile_of_the_window_once_and_nothing_needless(tmp_path, seed, draw):
    path = tmp_path / "f.tif"
    if not path.exists():
        write(tmp_path, some_pixels(shape=(150, 120)), compress="deflate")
    header = spread(whole_header(path.read_bytes()), np.random.default_rng(seed), [0, 8, 500])
    r, c = draw.draw(st.integers(0, 149)), draw.draw(st.integers(0, 119))
    window = Window(r, c, draw.draw(st.integers(1, 150 - r)), draw.draw(st.integers(1, 120 - c)))
    gap = draw.draw(st.sampled_from([0, 8, 400, 10_000]))
    ranges = plan(header, window, gap)
    seen = [tile for part in ranges for tile in part.tiles]
    wanted = {
        (i, j)
        for i, j in itertools.product(range(header.counts.shape[0]), range(header.counts.shape[1]))
        if header.counts[i, j] and r < 16 * (i + 1) and 16 * i < r + window.height_px
        if c < 16 * (j + 1) and 16 * j < c + window.width_px
    }
    assert set(seen) == wanted
    assert len(seen) == len(wanted)
    for part in ranges:
        ends = sorted((int(header.offsets[t]), int(header.offsets[t] + header.counts[t])) for t in part.tiles)
        assert (part.start, part.stop) == (ends[0][0], ends[-1][1])
        assert all(after[0] - before[1] <= gap for before, after in itertools.pairwise(ends))
    assert all(after.start - before.stop > gap for before, after in itertools.pairwise(ranges))


def sentinel(folder, tile_px, tile_bytes, size_px=10980):
    """The header of a whole Sentinel-2 band, its tiles row by row with GDAL's 8 bytes between them."""
    cog = write(folder, some_pixels(shape=(64, 64)), compress="deflate")
    across = -(-size_px // tile_px)
    counts = np.full((across, across), tile_bytes, np.uint64)
    offsets = 3000 + np.arange(across * across, dtype=np.uint64).reshape(across, across) * np.uint64(tile_bytes + 8)
    return dataclasses.replace(
        whole_header(cog), height_px=size_px, width_px=size_px, tile_height_px=tile_px, tile_width_px=tile_px,
        offsets=offsets, counts=counts,
    )  # fmt: skip


@pytest.mark.parametrize(("tile_px", "requests"), [(1024, 2), (512, 4)])
def test_a_block_of_a_sentinel_2_band_is_one_range_a_row_of_tiles(tmp_path, tile_px, requests):
    header = sentinel(tmp_path, tile_px, 1_200_000 * tile_px**2 // 1024**2)
    ranges = plan(header, Window(2048, 4096, 2048, 2048))
    assert len(ranges) == requests
    moved = sum(part.stop - part.start for part in ranges)
    assert moved <= 1.0001 * sum(int(header.counts[t]) for part in ranges for t in part.tiles)


def test_rows_as_wide_as_the_raster_are_joined_up_to_a_limit(tmp_path):
    header = sentinel(tmp_path, 1024, 1_200_000)
    ranges = plan(header, Window(0, 0, 2048, 10980))
    assert len(ranges) == 2
    assert all(part.stop - part.start <= tiff.MAX_RANGE_BYTES for part in ranges)


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 79, 2, 2), (0, 0, 0, 2), (64, 0, 1, 1), (0, 0, 65, 1)])
def test_a_window_that_leaves_the_raster_is_refused(tmp_path, window):
    header = whole_header(write(tmp_path, some_pixels()))
    for use in (lambda: tiles_of(header, Window(*window)), lambda: decode(header, Window(*window), {})):
        with pytest.raises(ValueError, match="is not within 64 x 80 px"):
            use()
