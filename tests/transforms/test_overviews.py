import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rio_cogeo.cogeo import cog_validate

from model.quantise import SCALE_FLOOR, dequantise
from transforms.assembly import DamagedFragment, overviews_of, publish_raster, raster_of
from transforms.cog import encode_window, template_profile
from transforms.disk_store import LocalStore
from transforms.fragments import layouts_of, part_of
from transforms.grid import tile_of
from transforms.overviews import KEYS, halved
from transforms.pyramid import factors_of, pyramid_header
from transforms.receipts import DONE, Desk, Receipt
from transforms.tiff import GDAL_METADATA

DIMS = 5
QUANTISER = (SCALE_FLOOR, "largest")
DESK = Desk("_work/2024/33TWL/01234567/89abcdef")


def slowly_halved(codes, scale):
    """Pixel by pixel: the mean of the vectors that are there, and the code of that."""
    H, W = -(-scale.shape[0] // 2), -(-scale.shape[1] // 2)
    out, size = np.full((H, W, codes.shape[2]), -128, np.int8), np.full((H, W), np.nan, np.float32)
    for y in range(H):
        for x in range(W):
            box = slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2)
            there = np.isfinite(scale[box]).ravel()
            if not there.any():
                continue
            vectors = dequantise(codes[box], scale[box]).reshape(-1, codes.shape[2])[there]
            mean = np.zeros(codes.shape[2], np.float32)
            for v in vectors:
                mean = mean + v
            mean = mean / np.float32(len(vectors))
            size[y, x] = max(np.abs(mean).max(), np.float32(SCALE_FLOOR)) / np.float32(127)
            out[y, x] = [max(-127, min(127, round(float(np.float32(v) / size[y, x])))) for v in mean]
    return out, size


def pixels(H, W, seed=0, share=0.7, hole=None):
    rng = np.random.default_rng(seed)
    there = rng.random((H, W)) < share
    if hole:
        there[hole] = False
    codes = np.where(there[..., None], rng.integers(-127, 128, (H, W, DIMS)), -128).astype(np.int8)
    return codes, np.where(there, rng.uniform(0.001, 0.1, (H, W)), np.nan).astype(np.float32)


vectors = hnp.arrays(np.int8, (6, 4, 3), elements=st.integers(-127, 127))
sizes = hnp.arrays(np.float32, (6, 4), elements=st.floats(2**-30, 1024, width=32) | st.just(np.nan))


@given(vectors, sizes)
def test_an_overview_pixel_is_the_coded_mean_of_the_vectors_below_it(codes, scale):
    codes[np.isnan(scale)] = -128
    got, want = halved(codes, scale, *QUANTISER), slowly_halved(codes, scale)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


@given(vectors, sizes)
def test_an_overview_has_data_where_any_pixel_has_and_no_other_vector_comes_in(codes, scale):
    codes[np.isnan(scale)] = -128
    got, size = halved(codes, scale, *QUANTISER)
    there = np.isfinite(scale).reshape(3, 2, 2, 2).any((1, 3))
    assert (np.isfinite(size) == there).all() and ((got != -128).all(-1) == there).all()
    values = dequantise(codes, scale).reshape(3, 2, 2, 2, 3)
    low, high = (
        np.nanmin(np.where(np.isnan(values), np.inf, values), (1, 3)),
        np.nanmax(np.where(np.isnan(values), -np.inf, values), (1, 3)),
    )
    mean, slack = dequantise(got, size)[there], (size[there] * 0.51)[:, None]
    assert (mean >= low[there] - slack - 1e-6 * abs(low[there])).all()
    assert (mean <= high[there] + slack + 1e-6 * abs(high[there])).all()


def test_codes_and_scales_that_disagree_are_refused():
    codes, scale = pixels(4, 4, share=1)
    scale[1, 2] = np.nan
    with pytest.raises(ValueError, match="disagree"):
        halved(codes, scale, *QUANTISER)


def test_levels_go_down_to_less_than_a_screen():
    of = layouts_of(tile_of("33TWL"), DIMS, ())["scales"]
    assert factors_of(of) == (2, 4, 8, 16, 32)
    assert factors_of(dataclasses.replace(of, height_px=511, width_px=511)) == ()
    assert factors_of(dataclasses.replace(of, height_px=100, width_px=1023)) == (2, 4)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def a_raster(store, H, W, block_px, pool, seed=0, share=0.7, left_out=(), **changed):
    """Fragments and receipts of a raster, and its pixels; `left_out`: (row, column) of blocks that hold no data."""
    codes, scale = pixels(H, W, seed, share, (slice(0, 128), slice(128, 256)))
    for r, c in left_out:
        codes[r : r + block_px, c : c + block_px], scale[r : r + block_px, c : c + block_px] = -128, np.nan
    layouts = {
        k: dataclasses.replace(v, height_px=H, width_px=W)
        for k, v in layouts_of(tile_of("33TWL"), DIMS, (("TESSERA_TILE", "33TWL"),)).items()
    }
    receipts = []
    for r in range(0, H, block_px):
        for c in range(0, W, block_px):
            where = slice(r, min(r + block_px, H)), slice(c, min(c + block_px, W))
            tiles = {
                "embeddings": encode_window(codes[where], layouts["embeddings"]),
                "scales": encode_window(scale[where][..., None], layouts["scales"]),
            }
            parts = {k: part_of(v) for k, v in tiles.items()}
            h, w = scale[where].shape
            receipts.append(Receipt("33TWL", "2024", "0" * 64, r, c, h, w, DONE, parts=parts))
            for k, v in tiles.items():
                if parts[k]["size_bytes"]:
                    store.replace(DESK.fragment_name(receipts[-1].block, k, parts[k]), b"".join(v))
    return codes, scale, layouts, receipts


def published(store, layouts, receipts, pool):
    levels = overviews_of(store, DESK, layouts, receipts, *QUANTISER, pool)
    stats = {}
    for key in KEYS:
        raster = raster_of(DESK, key, layouts[key], receipts, levels[key])
        stats[key] = publish_raster(store, DESK, key, raster, receipts, f"{key}.tif")
        assert stats[key].crc32c == raster.crc32c
    return levels


CASES = [
    pytest.param(
        1100, 700, 512, (), marks=pytest.mark.slow
    ),  # blocks of whole tiles at two levels, sides that are odd when halved
    pytest.param(
        1100, 700, 256, ((256, 256), (512, 0)), marks=pytest.mark.slow
    ),  # the second overview's tiles lie across blocks
    (1030, 515, 768, ((0, 0),)),
]


@pytest.mark.parametrize(("H", "W", "block_px", "left_out"), CASES)
def test_every_level_reads_back_as_the_slow_halving_of_the_one_below(tmp_path, pool, H, W, block_px, left_out):
    store = LocalStore(str(tmp_path))
    codes, scale, layouts, receipts = a_raster(store, H, W, block_px, pool, left_out=left_out)
    levels = published(store, layouts, receipts, pool)
    paths = {key: store.path(f"{key}.tif") for key in KEYS}
    for key in KEYS:
        assert cog_validate(paths[key], strict=True)[:2] == (True, [])
        with rasterio.open(paths[key]) as f:
            assert f.overviews(1) == [level.factor for level in levels[key]] == list(factors_of(layouts[key]))
            assert f.tags()["TESSERA_TILE"] == "33TWL"
            full = np.moveaxis(f.read(), 0, -1)
            np.testing.assert_array_equal(full, codes if key == "embeddings" else scale[..., None])
    for n, _ in enumerate(levels["scales"]):
        codes, scale = slowly_halved(codes, scale)
        with rasterio.open(paths["embeddings"], overview_level=n) as f:
            np.testing.assert_array_equal(np.moveaxis(f.read(), 0, -1), codes)
            assert f.nodata == -128
        with rasterio.open(paths["scales"], overview_level=n) as f:
            np.testing.assert_array_equal(f.read(1), scale)


def test_overviews_are_the_same_bytes_whatever_the_block_size(tmp_path, pool):
    made = []
    for block_px in (256, 768, 1280):
        store = LocalStore(str(tmp_path / str(block_px)))
        _, _, layouts, receipts = a_raster(store, 1100, 700, block_px, pool)
        levels = published(store, layouts, receipts, pool)
        made.append(
            {
                (key, level.factor, place): store.get(level.name, int(level.offsets[place]), int(level.sizes[place]))
                for key in KEYS
                for level in levels[key]
                for place in np.ndindex(level.sizes.shape)
            }
        )
    assert made[0] == made[1] == made[2]


def test_a_tile_without_data_has_empty_overviews(tmp_path, pool):
    store = LocalStore(str(tmp_path))
    _, _, layouts, receipts = a_raster(store, 600, 600, 256, pool, share=0.0)
    levels = published(store, layouts, receipts, pool)
    assert [level.size_bytes for level in levels["embeddings"]] == [0]
    with rasterio.open(store.path("embeddings.tif"), overview_level=0) as f:
        assert (f.read() == -128).all()


@pytest.mark.parametrize("key", KEYS)
def test_a_damaged_fragment_is_named_and_nothing_is_made_of_it(tmp_path, pool, key):
    store = LocalStore(str(tmp_path))
    _, _, layouts, receipts = a_raster(store, 600, 600, 256, pool)
    name = DESK.fragment_name(receipts[4].block, key, receipts[4].parts[key])
    data = bytearray(store.get(name))
    data[: len(data) // 2] = bytes(len(data) // 2)
    store.replace(name, bytes(data))
    with pytest.raises(DamagedFragment) as caught:
        overviews_of(store, DESK, layouts, receipts, *QUANTISER, pool)
    assert caught.value.block == receipts[4].block


def test_the_directories_are_those_that_gdal_would_have_written():
    # GDAL's own way to empty overviews, for a file that is small enough for it.
    layout = dataclasses.replace(layouts_of(tile_of("33TWL"), 3, ())["embeddings"], height_px=1100, width_px=700)
    with rasterio.Env(SPARSE_OK_OVERVIEW="YES"), MemoryFile() as memory:
        with memory.open(**template_profile(layout), nodata=-128) as dst:
            dst.build_overviews((2, 4), Resampling.nearest)
        theirs = bytes(memory.read())
    ours, _ = pyramid_header(layout, (2, 4))
    # Descriptions, GDAL's word for the resampling, and a parameter of the CRS that it adds when it opens a file again.
    left_out = (GDAL_METADATA, 34736)
    found = []
    for data in (ours, theirs):
        with tifffile.TiffFile(io.BytesIO(data)) as tif:
            found.append([{t.code: t.value for t in page.tags if t.code not in left_out} for page in tif.pages])
    assert found[0] == found[1]
