"""Published files read by others: over http in few requests, and pixel for pixel by readers of other people."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.windows import Window

from transforms.assembly import publish_raster, raster_of
from transforms.cog import decode_tile, encode_window, header_size
from transforms.disk_store import LocalStore
from transforms.fragments import layouts_of, part_of
from transforms.grid import TILE_PX, tile_of
from transforms.pyramid import factors_of, pyramid_header
from transforms.reading import INDEX_BYTES, index_bytes, open_published, options_for
from transforms.receipts import DONE, Desk, Receipt

DIMS = 4
LAYOUTS = layouts_of(tile_of("33TWL"), DIMS, ())
FULL = layouts_of(tile_of("33TWL"), 128, (("TESSERA_VALUE", "x" * 200),))
BLOCK_PX = 512
PLACES = ((2048, 4096), (2048, 4608), (2560, 4096))  # (row, column) of the blocks that hold data
AROUND = Window(4096, 2048, 1024, 1024)


def load_range_server():
    spec = importlib.util.spec_from_file_location("range_server", Path(__file__).parents[2] / "bench/range_server.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Folder of embeddings.tif and scales.tif of a whole tile with three blocks of data, and that data."""
    store, desk, rng = LocalStore(str(tmp_path_factory.mktemp("joined"))), Desk("_work"), np.random.default_rng(0)
    codes, scale = np.full((1024, 1024, DIMS), -128, np.int8), np.full((1024, 1024, 1), np.nan, np.float32)
    receipts = []
    for row, col in PLACES:
        here = slice(row - 2048, row - 2048 + BLOCK_PX), slice(col - 4096, col - 4096 + BLOCK_PX)
        codes[here] = rng.integers(-127, 128, (BLOCK_PX, BLOCK_PX, DIMS))
        scale[here] = rng.uniform(0.01, 0.1, (BLOCK_PX, BLOCK_PX, 1))
        tiles = {key: encode_window(a[here], LAYOUTS[key]) for key, a in (("embeddings", codes), ("scales", scale))}
        parts = {key: part_of(t) for key, t in tiles.items()}
        receipts.append(Receipt("33TWL", "2024", "0" * 64, row, col, BLOCK_PX, BLOCK_PX, DONE, parts=parts))
        for key, t in tiles.items():
            store.replace(desk.fragment_name(receipts[-1].block, key, parts[key]), b"".join(t))
    for key in ("embeddings", "scales"):
        raster = raster_of(desk, key, LAYOUTS[key], receipts)
        publish_raster(store, desk, key, raster, receipts, f"{key}.tif")
    return Path(store.root), codes, scale


@pytest.mark.parametrize(("row", "col"), [(0, 0), (256, 256), (0, 768), (768, 256)])
def test_an_aligned_window_takes_four_requests_with_our_options(joined, row, col):
    folder, codes, scale = joined
    window = Window(4096 + col, 2048 + row, 256, 256)
    with load_range_server().serve(folder, 0.0) as (url, counts):
        for key, wanted in (("embeddings", codes), ("scales", scale)):
            counts.reset()
            with open_published(f"{url}/{key}.tif") as file:
                got = np.moveaxis(file.read(window=window), 0, -1)
            np.testing.assert_array_equal(got, wanted[row : row + 256, col : col + 256])
            # Size, index, and the two rows of internal tiles; none of it brought the file.
            assert counts.requests <= 4
            assert counts.sent < INDEX_BYTES + (folder / f"{key}.tif").stat().st_size / 2


def test_without_the_index_at_once_it_takes_more(joined):
    folder, *_ = joined
    options = {k: v for k, v in options_for().items() if k != "GDAL_INGESTED_BYTES_AT_OPEN"}
    with load_range_server().serve(folder, 0.0) as (url, counts):
        with rasterio.Env(**options), rasterio.open(f"{url}/embeddings.tif") as file:
            file.read(window=Window(4096, 2048, 256, 256))
        assert counts.requests > 4


@pytest.mark.parametrize("key", sorted(FULL))
def test_the_index_of_every_file_is_read_at_once_with_its_overviews_too(key):
    with_overviews, _ = pyramid_header(FULL[key], factors_of(FULL[key]))
    assert header_size(FULL[key]) <= index_bytes(FULL[key]) <= INDEX_BYTES
    assert header_size(FULL[key]) < len(with_overviews) <= index_bytes(FULL[key], overviews=True) <= INDEX_BYTES


def test_the_options_are_words_that_gdal_takes():
    options = options_for(1 << 17)
    assert all(isinstance(v, str) for v in options.values())
    with rasterio.Env(**options):
        assert rasterio.env.getenv()["GDAL_INGESTED_BYTES_AT_OPEN"] == str(1 << 17)


def test_a_folder_s_file_is_opened_too_and_other_schemes_are_refused(joined):
    folder, codes, _ = joined
    with open_published(str(folder / "embeddings.tif")) as file:
        assert np.array_equal(np.moveaxis(file.read(window=AROUND), 0, -1), codes)
    with pytest.raises(ValueError, match="ftp://"), open_published("ftp://host/embeddings.tif"):
        pass


def test_tifffile_finds_every_tile_of_a_joined_raster(joined):
    folder, codes, scale = joined
    for key, wanted in (("embeddings", codes), ("scales", scale)):
        layout, got = LAYOUTS[key], np.empty_like(wanted)
        with tifffile.TiffFile(folder / f"{key}.tif") as tif:
            page = tif.pages[0]
            assert page.shape[:2] == (TILE_PX, TILE_PX)
            across = layout.tiles_across
            stored = [n for n, size in enumerate(page.databytecounts) if size]
            assert len(stored) == len(PLACES) * 16
            for row in range(0, 1024, 128):
                for col in range(0, 1024, 128):
                    n = (2048 + row) // 128 * across + (4096 + col) // 128
                    tif.filehandle.seek(page.dataoffsets[n])
                    # Their places by tifffile; decoded by ours, for it has ZSTD only where imagecodecs is.
                    data = tif.filehandle.read(page.databytecounts[n]) if page.databytecounts[n] else b""
                    got[row : row + 128, col : col + 128] = decode_tile(data, layout)
        np.testing.assert_array_equal(got, wanted)


def test_async_geotiff_reads_a_joined_raster(joined):
    geotiff, store = pytest.importorskip("async_geotiff"), pytest.importorskip("async_tiff.store")
    folder, codes, _ = joined

    async def read():
        file = await geotiff.GeoTIFF.open("embeddings.tif", store=store.LocalStore(str(folder)))
        # Only where every tile is stored: async-tiff 0.7.2 cannot read sparse tiles (its pull request 340 is open).
        return (await file.read(window=geotiff.Window(4096, 2048, 512, 512))).data

    got = np.asarray(asyncio.run(read()))
    np.testing.assert_array_equal(np.moveaxis(got, 0, -1), codes[:512, :512])
