import io

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile
from rio_cogeo.cogeo import cog_validate

from transforms.cog import encode_tile
from transforms.fragments import layouts_of
from transforms.grid import TILE_PX, tile_of
from transforms.picture import OVERVIEWS, preview_head, reduced, thumbnail

LAYOUT = layouts_of(tile_of("33TWL"), 128, (("TESSERA_TILE", "33TWL"),))["preview"]


def preview_of(tiles):
    """The whole file and the thumbnail, as publishing joins them: the full image's tiles behind the rest."""
    half = reduced([(r, c) for r, c, _ in tiles], iter(tiles), LAYOUT)
    offsets = np.zeros((LAYOUT.tiles_down, LAYOUT.tiles_across), np.uint64)
    sizes, bodies, at = np.zeros_like(offsets), [], 0
    for r, c, pixels in tiles:
        bodies.append(encode_tile(pixels, LAYOUT))
        offsets[r, c], sizes[r, c] = at, len(bodies[-1])
        at += len(bodies[-1])
    head, _ = preview_head(half, offsets, sizes, LAYOUT)
    return head + b"".join(bodies), half.thumbnail


def picture(row, col, height, width, seed=0):
    """A whole tile with noise in one window, and its internal tiles."""
    whole = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    whole[row : row + height, col : col + width] = np.random.default_rng(seed).integers(1, 256, (height, width, 3))
    whole = whole[:TILE_PX, :TILE_PX]
    T = LAYOUT.tile_px
    tiles = []
    for r in range(row // T, -(-(row + height) // T)):
        for c in range(col // T, -(-(col + width) // T)):
            square = np.zeros((T, T, 3), np.uint8)
            part = whole[r * T : r * T + T, c * T : c * T + T]
            square[: part.shape[0], : part.shape[1]] = part
            tiles.append((r, c, square))
    return whole, tiles


@pytest.mark.parametrize(
    "window", [(1000, 2000, 300, 500), (0, 0, 130, 5), (10700, 10600, 280, 380), (5, 10970, 700, 10)]
)
def test_the_preview_is_a_cog_with_the_pixels_at_their_place_and_their_means_above(window, tmp_path):
    whole, tiles = picture(*window)
    data, _ = preview_of(tiles)
    path = tmp_path / "preview.tif"
    path.write_bytes(data)
    assert cog_validate(path, strict=True)[:2] == (True, [])
    row, col, height, width = window
    with rasterio.open(path) as f:
        assert f.overviews(1) == list(OVERVIEWS)
        assert f.crs.to_epsg() == 32633 and f.nodata == 0 and f.tags()["TESSERA_TILE"] == "33TWL"
        r0, c0 = max(0, row - 50), max(0, col - 50)
        around = rasterio.windows.Window(c0, r0, min(width + 100, TILE_PX - c0), min(height + 100, TILE_PX - r0))
        got = np.moveaxis(f.read(window=around), 0, -1)
        assert np.array_equal(got, whole[r0 : r0 + got.shape[0], c0 : c0 + got.shape[1]])
    with rasterio.open(path, overview_level=0) as f:
        r, c = row // 2, col // 2
        box = whole[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(-1, 3).astype(int)
        seen = [v[v > 0] for v in box.T]
        want = [int((v.sum() + len(v) // 2) // len(v)) if len(v) else 0 for v in seen]
        assert f.read(window=rasterio.windows.Window(c, r, 1, 1))[:, 0, 0].tolist() == want


def test_a_tile_without_data_has_an_empty_preview(tmp_path):
    data, small = preview_of([])
    path = tmp_path / "preview.tif"
    path.write_bytes(data)
    assert len(data) < 125_000  # the header alone
    with rasterio.open(path) as f:
        assert not f.read(window=rasterio.windows.Window(0, 0, 300, 300)).any()
    assert small.startswith(b"\x89PNG")


@pytest.mark.parametrize(("side", "shown"), [(40, 240), (320, 320), (1500, 375)])
def test_a_thumbnail_is_large_enough_to_see_and_small_enough_for_a_page(side, shown):
    whole = np.zeros((2000, 2000, 3), np.uint8)
    whole[100 : 100 + side, 300 : 300 + side] = 77
    with MemoryFile(io.BytesIO(thumbnail(whole)).getvalue()) as memory, memory.open() as f:
        assert (f.height, f.width) == (shown, shown)
        assert (f.read(1) == 77).all() and (f.read(4) == 255).all()
