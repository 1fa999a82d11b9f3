import dataclasses
import math
from importlib.util import find_spec

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from rio_cogeo.cogeo import cog_validate

from model.errors import BadInput
from transforms.cog import Layout, assemble, decode_tile, encode_tile, encode_window, header, header_size, write

NORTH_UP = (10.0, 0.0, 699960.0, 0.0, -10.0, 5100000.0)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")


@st.composite
def rasters(draw):
    """A layout and pixels of it: random values, a few of them nodata, and whole tiles of nodata."""
    dtype = draw(st.sampled_from(DTYPES))
    floating = dtype == "float32"
    if floating:
        nodata = draw(st.sampled_from([None, math.nan, -32768.0, 0.0]))
    elif dtype.startswith("u"):
        nodata = draw(st.sampled_from([None, 0, 7, np.iinfo(dtype).max]))
    else:  # tifffile 2026.3.3 takes a positive nodata of a signed type for 0
        nodata = draw(st.sampled_from([None, 0, -7, np.iinfo(dtype).min]))
    layout = Layout(
        height_px=draw(st.integers(1, 70)),
        width_px=draw(st.integers(1, 70)),
        bands=draw(st.sampled_from([1, 2, 3, 5])),
        dtype=dtype,
        tile_px=draw(st.sampled_from([16, 32, 48])),
        nodata=nodata,
        epsg=32633,
        transform=NORTH_UP,
        codec=draw(st.sampled_from(["zstd", "deflate"])),
        predictor=draw(st.sampled_from([1, 3] if floating else [1, 2])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (layout.height_px, layout.width_px, layout.bands)
    if floating:
        pixels = rng.normal(0, 10.0 ** rng.integers(-3, 4), shape).astype(np.float32)
    else:
        limits = np.iinfo(dtype)
        pixels = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    pixels[rng.random(shape) < 0.2] = layout.fill
    for row in range(0, layout.height_px, layout.tile_px):
        for col in range(0, layout.width_px, layout.tile_px):
            if rng.random() < 0.3:
                pixels[row : row + layout.tile_px, col : col + layout.tile_px] = layout.fill
    return layout, pixels


def tiles_of(layout, pixels):
    encoded = encode_window(pixels, layout)
    return {divmod(i, layout.tiles_across): data for i, data in enumerate(encoded)}


def read_gdal(path):
    with rasterio.open(path) as src:
        return np.moveaxis(src.read(), 0, -1)


def read_tifffile(path, layout):
    """Pixels as tifffile sees them. Without imagecodecs it has neither ZSTD nor predictor 3: then its tile tables are
    used with our decoder, and GDAL alone vouches for codec and predictor."""
    shape = (layout.height_px, layout.width_px, layout.bands)
    if find_spec("imagecodecs") or (layout.codec == "deflate" and layout.predictor < 3):
        return tifffile.imread(path).reshape(shape)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        assert (page.imagelength, page.imagewidth) == shape[:2]
        data = path.read_bytes()
        tiles = [data[at : at + n] for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    side = layout.tile_px
    out = np.empty((layout.tiles_down * side, layout.tiles_across * side, layout.bands), layout.dtype)
    for i, tile in enumerate(tiles):
        row, col = divmod(i, layout.tiles_across)
        out[row * side : row * side + side, col * side : col * side + side] = decode_tile(tile, layout)
    return out[: layout.height_px, : layout.width_px]


@settings(max_examples=120, deadline=None)
@given(rasters())
def test_gdal_and_tifffile_read_back_what_was_written(tmp_path_factory, raster):
    layout, pixels = raster
    path = tmp_path_factory.mktemp("cog") / "a.tif"
    write(path, layout, tiles_of(layout, pixels))
    np.testing.assert_array_equal(read_gdal(path), pixels)
    np.testing.assert_array_equal(read_tifffile(path, layout), pixels)
    with rasterio.open(path) as src:
        assert src.profile["compress"] == layout.codec
        assert src.block_shapes[0] == (layout.tile_px, layout.tile_px)


@settings(max_examples=80, deadline=None)
@given(rasters())
def test_a_tile_comes_back_from_its_own_decoder(raster):
    layout, pixels = raster
    for (row, col), data in tiles_of(layout, pixels).items():
        want = np.full((layout.tile_px, layout.tile_px, layout.bands), layout.fill, layout.dtype)
        part = pixels[row * layout.tile_px :, col * layout.tile_px :][: layout.tile_px, : layout.tile_px]
        want[: part.shape[0], : part.shape[1]] = part
        before = want.copy()
        assert encode_tile(want, layout) == data
        np.testing.assert_array_equal(want, before)
        got = decode_tile(data, layout)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@settings(max_examples=60, deadline=None)
@given(rasters())
def test_only_tiles_with_data_are_stored(raster):
    layout, pixels = raster
    for (row, col), data in tiles_of(layout, pixels).items():
        part = pixels[row * layout.tile_px :, col * layout.tile_px :][: layout.tile_px, : layout.tile_px]
        empty = np.isnan(part) if math.isnan(layout.fill) else part == layout.fill
        assert (data == b"") == bool(empty.all())


@settings(max_examples=40, deadline=None)
@given(rasters(), st.randoms(use_true_random=False))
def test_tiles_may_stand_in_any_order_behind_the_header(tmp_path_factory, raster, random):
    layout, pixels = raster
    tiles = list(tiles_of(layout, pixels).items())
    random.shuffle(tiles)
    offsets = np.zeros((layout.tiles_down, layout.tiles_across), np.uint64)
    counts = np.zeros_like(offsets)
    at = header_size(layout)
    for key, data in tiles:
        offsets[key], counts[key] = at, len(data)
        at += len(data)
    path = tmp_path_factory.mktemp("cog") / "a.tif"
    path.write_bytes(header(layout, offsets, counts) + b"".join(data for _, data in tiles))
    np.testing.assert_array_equal(read_gdal(path), pixels)
    np.testing.assert_array_equal(read_tifffile(path, layout), pixels)


@given(rasters())
@settings(max_examples=30, deadline=None)
def test_the_length_of_a_header_does_not_depend_on_the_tiles(raster):
    layout, _ = raster
    tiles = layout.tiles_down * layout.tiles_across
    far = header(layout, np.full(tiles, 2**40), np.full(tiles, 60_000))
    none = header(layout, np.zeros(tiles), np.zeros(tiles))
    assert len(far) == len(none) == header_size(layout)


EMBEDDINGS = Layout(
    height_px=1100,
    width_px=700,
    bands=16,
    dtype="int8",
    tile_px=128,
    nodata=-128,
    epsg=32633,
    transform=NORTH_UP,
    band_names=tuple(f"E{i:03d}" for i in range(16)),
    tags=(("MODEL", "untrained"), ("PERIOD", "2024")),
)


def smooth(shape):
    rows, cols, bands = np.indices(shape)
    return (40 * np.sin(rows / 30 + bands) + 40 * np.cos(cols / 20)).astype(np.int8)


def test_place_nodata_names_and_tags_come_through(tmp_path):
    path = tmp_path / "embeddings.tif"
    write(path, EMBEDDINGS, tiles_of(EMBEDDINGS, smooth((1100, 700, 16))))
    with rasterio.open(path) as src:
        assert src.crs.to_epsg() == 32633
        assert tuple(src.transform)[:6] == NORTH_UP
        assert src.nodatavals == (-128,) * 16
        assert src.descriptions == EMBEDDINGS.band_names
        assert {"MODEL": "untrained", "PERIOD": "2024"}.items() <= src.tags().items()
        assert src.interleaving.name == "pixel"


@pytest.mark.parametrize("dtype, predictor, nodata", [("int8", 2, -128), ("float32", 3, math.nan)])
def test_a_file_is_a_valid_cog(tmp_path, dtype, predictor, nodata):
    layout = dataclasses.replace(EMBEDDINGS, dtype=dtype, predictor=predictor, nodata=nodata)
    path = tmp_path / "a.tif"
    write(path, layout, tiles_of(layout, smooth((1100, 700, 16)).astype(dtype)))
    valid, errors, warnings = cog_validate(path)
    assert valid and not errors
    assert all("overviews" in w for w in warnings)


def test_a_file_without_a_single_tile_reads_as_nodata(tmp_path):
    path = tmp_path / "a.tif"
    write(path, EMBEDDINGS, {})
    assert path.stat().st_size == header_size(EMBEDDINGS)
    assert (read_gdal(path) == -128).all()
    assert (read_tifffile(path, EMBEDDINGS) == -128).all()


def test_embeddings_of_a_whole_tile_have_their_place_in_the_header(tmp_path):
    layout = dataclasses.replace(
        EMBEDDINGS, height_px=10980, width_px=10980, bands=128, band_names=tuple(f"E{i:03d}" for i in range(128))
    )
    pixels = smooth((130, 130, 128))
    window = encode_window(pixels, layout)
    corner = {(84 + i // 2, 80 + i % 2): data for i, data in enumerate(window)}
    path = tmp_path / "a.tif"
    write(path, layout, corner)
    with rasterio.open(path) as src:
        got = src.read(window=((84 * 128 - 1, 84 * 128 + 130), (80 * 128 - 1, 80 * 128 + 130)))
    np.testing.assert_array_equal(np.moveaxis(got[:, 1:, 1:], 0, -1), pixels)
    assert (got[:, 0] == -128).all() and (got[:, :, 0] == -128).all()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tif"
    write(path, EMBEDDINGS, {})
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"\(9, 0\).*9 x 6"):
        write(path, EMBEDDINGS, {(9, 0): b"x"})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_equal_input_gives_equal_bytes_for_every_nan():
    layout = dataclasses.replace(EMBEDDINGS, dtype="float32", predictor=3, nodata=math.nan)
    other = dataclasses.replace(layout, nodata=float("nan"))
    pixels = smooth((1100, 700, 16)).astype(np.float32)
    assert assemble(layout, tiles_of(layout, pixels)) == assemble(other, tiles_of(other, pixels))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "float64"}, "float64"),
        ({"tile_px": 100}, "100 px.*multiple of 16"),
        ({"codec": "lzw"}, "lzw"),
        ({"predictor": 3}, "predictor 3 for int8"),
        ({"nodata": -129}, "-129.*int8"),
        ({"nodata": math.nan}, "nan.*int8"),
        ({"transform": (10, 0, 0, 0, 10, 0)}, "north-up"),
        ({"band_names": ("a",)}, "1 band names for 16"),
        ({"width_px": 0}, "1100 x 0 x 16"),
    ],
)
def test_a_layout_that_no_file_can_have_is_refused(change, message):
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(EMBEDDINGS, **change)


def test_tables_that_do_not_fit_the_layout_are_refused():
    with pytest.raises(BadInput, match=r"3 offsets and 54 counts.*54 tiles"):
        header(EMBEDDINGS, np.zeros(3), np.zeros(54))
    with pytest.raises(BadInput, match=r"offset 16: the header takes the first [0-9]{4} bytes"):
        header(EMBEDDINGS, np.full(54, 16), np.ones(54))
    with pytest.raises(BadInput, match="a tile of 4294967296 bytes: the file's table holds uint32"):
        header(EMBEDDINGS, np.full(54, 2**40), np.full(54, 2**32))
    with pytest.raises(BadInput, match=r"int16.*int8"):
        encode_window(np.zeros((4, 4, 16), np.int16), EMBEDDINGS)
    with pytest.raises(BadInput, match="layout wants"):
        encode_tile(np.zeros((4, 4, 16), np.int8), EMBEDDINGS)


@pytest.mark.parametrize("codec", ["zstd", "deflate"])
def test_damaged_tiles_are_refused(codec):
    layout = dataclasses.replace(EMBEDDINGS, codec=codec)
    data = encode_tile(smooth((128, 128, 16)), layout)
    with pytest.raises(BadInput, match=codec):
        decode_tile(data[: len(data) // 2], layout)
    small = dataclasses.replace(layout, tile_px=64)
    with pytest.raises(BadInput):
        decode_tile(encode_tile(smooth((64, 64, 16)), small), layout)
