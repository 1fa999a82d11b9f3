import math
import struct

import numpy as np
import pytest
import rasterio
import rasterio.windows
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from tiff_files import FEW, GRID, read, same_as_rasterio, some_pixels, whole_header, with_tiles, write

from transforms import tiff
from transforms.cog import Layout, assemble
from transforms.tiff import Damaged, MoreNeeded, NotACog, Window, parse_header


@pytest.mark.parametrize(
    "options",
    [
        {"transform": Affine(10, 2, 500, 3, -10, 600)},  # rotated: GDAL writes a matrix
        {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 7, 0, -0.1, 46)},
        {"crs": "EPSG:3857"},
        {"crs": None},
        {"crs": "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84"},  # no code
    ],
)
@pytest.mark.parametrize("point", [False, True])
def test_the_grid_is_the_one_that_rasterio_tells(tmp_path, options, point):
    # AREA_OR_POINT=Point moves the tie point by half a pixel in the file; GDAL moves it back.
    write(tmp_path, some_pixels(), **options)
    if point:
        with rasterio.open(tmp_path / "f.tif", "r+") as file:
            file.update_tags(AREA_OR_POINT="Point")
    data = (tmp_path / "f.tif").read_bytes()
    same_as_rasterio(tmp_path / "f.tif", data, whole_header(data), Window(0, 0, 3, 3))


def test_a_nodata_value_that_no_pixel_can_hold_is_none(tmp_path):
    data = write(tmp_path, some_pixels("int16"), nodata=-9999)
    header = whole_header(data)
    assert header.nodata == -9999
    field = header.tags[tiff.GDAL_NODATA]
    assert tiff._nodata({tiff.GDAL_NODATA: field}, "uint16") is None
    with pytest.raises(NotACog, match="nodata value is 'none'"):
        tiff._nodata({tiff.GDAL_NODATA: field._replace(raw=b"none\0")}, "uint16")


def test_the_file_s_own_words_are_kept(tmp_path):
    write(tmp_path, some_pixels())
    with rasterio.open(tmp_path / "f.tif", "r+") as file:
        file.update_tags(ORBIT_PASS_DIRECTION="ASCENDING")
    data = (tmp_path / "f.tif").read_bytes()
    assert '<Item name="ORBIT_PASS_DIRECTION">ASCENDING</Item>' in whole_header(data).text(tiff.GDAL_METADATA)


# Headers that come in pieces


@pytest.mark.parametrize("big", ["YES", "NO"])
@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_a_header_that_is_cut_anywhere_says_how_much_it_needs(tmp_path, big, driver):
    options = {"driver": "COG", "blocksize": 128} if driver == "COG" else {}
    data = write(tmp_path, some_pixels(shape=(300, 300)), compress="deflate", bigtiff=big, **options)
    whole = whole_header(data)
    assert whole.stop < len(data)
    for length in [*range(600), *range(600, whole.stop, 7)]:  # fields first, then values and tables
        have, asked, header = length, 0, None
        while header is None:
            try:
                header = parse_header(data[:have], len(data))
            except MoreNeeded as more:
                assert have < more.stop <= whole.stop
                have, asked = more.stop, asked + 1
        assert 1 <= asked <= 4  # first bytes, number of fields, fields, values
        np.testing.assert_array_equal(header.offsets, whole.offsets)
        assert (header.transform, header.epsg, header.stop) == (whole.transform, whole.epsg, whole.stop)


@pytest.mark.parametrize("big", ["YES", "NO"])
def test_a_file_that_ends_early_is_never_a_header(tmp_path, big):
    data = write(tmp_path, some_pixels(), compress="deflate", bigtiff=big)
    for length in range(len(data)):
        with pytest.raises(NotACog):
            parse_header(data[:length], length)


@settings(FEW, max_examples=400)
@given(st.data())
def test_a_garbled_header_is_refused_or_leads_nowhere_outside_the_file(tmp_path, draw):
    path = tmp_path / "f.tif"
    if not path.exists():
        write(tmp_path, some_pixels(), compress="deflate")
    data = bytearray(path.read_bytes())
    stop = whole_header(bytes(data)).stop
    for at in draw.draw(st.lists(st.integers(0, stop - 1), min_size=1, max_size=6)):
        data[at] = draw.draw(st.integers(0, 255))
    try:
        header = whole_header(bytes(data))
    except NotACog:
        return
    assert (header.offsets + header.counts <= len(data)).all()
    assert 0 < header.height_px * header.width_px <= tiff.MAX_HEADER_BYTES * tiff.MAX_TILE_BYTES
    window = Window(0, 0, min(header.height_px, 64), min(header.width_px, 64))
    try:
        pixels = read(bytes(data), header, window)
    except Damaged:
        return
    assert pixels.shape == (window.height_px, window.width_px)


# What is refused


def edited(data, tag, kind, values):
    """A classic little-endian TIFF with one inline field of its first directory set anew."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, at)
    for i in range(at + 2, at + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", out, i)[0] == tag:
            struct.pack_into("<HI", out, i + 2, kind, 1)
            out[i + 8 : i + 12] = struct.pack("<I", values)
            return bytes(out)
    raise AssertionError(f"no field {tag}")


@pytest.mark.parametrize("said", [b"\0", b" "])
def test_a_nodata_field_without_a_number_is_refused(tmp_path, said):
    # GDAL takes it for 0 or for nothing, as its version will have it.
    data = edited(write(tmp_path, some_pixels(), nodata=0, BIGTIFF="NO"), tiff.GDAL_NODATA, 2, said[0])
    with pytest.raises(NotACog, match="its nodata value is ''"):
        whole_header(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"II*", "not a GeoTIFF"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML or XML"),
        (b'\n <?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML or XML"),
        (b"\xef\xbb\xbf<html>", "HTML or XML"),
        (b'<VRTDataset rasterXSize="1"><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>', "VRT"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(100), "JPEG 2000"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a GeoTIFF"),
        (b"II*\0" + bytes(100), "holds no image"),
        (b"II*\0" + struct.pack("<I", 8) + bytes(100), "0 fields"),
        (b"II*\0" + struct.pack("<I", 8) + b"\xff\xff" + bytes(100), "65,535 fields"),
        (b"II+\0\4\0\0\0" + bytes(100), "offsets are not of 8 bytes"),
    ],
)
def test_what_is_no_tiled_geotiff_is_named(data, words):
    with pytest.raises(NotACog, match=words):
        whole_header(data)


def retagged(data, old, new):
    """A classic little-endian TIFF in which one field stands under another number."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, at)
    for i in range(at + 2, at + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", out, i)[0] == old:
            struct.pack_into("<H", out, i, new)
            return bytes(out)
    raise AssertionError(f"no field {old}")


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        (tiff.SUBFILE, 1, "its first image is an overview or a mask"),
        (tiff.SUBFILE, 4, "its first image is an overview or a mask"),
        (tiff.FILL_ORDER, 2, "its bits are reversed"),
        (tiff.WIDTH, 80, "its field 256 is listed twice"),
    ],
)
def test_what_a_further_field_says_is_not_passed_over(tmp_path, tag, value, words):
    plain = write(tmp_path, some_pixels(), compress="deflate", BIGTIFF="NO")
    data = edited(plain, tiff.SAMPLE_FORMAT, 3, value)
    with pytest.raises(NotACog, match=words):
        whole_header(retagged(data, tiff.SAMPLE_FORMAT, tag))


def test_halves_of_floats_are_refused_rather_than_read_as_something_else(tmp_path):
    data = write(tmp_path, some_pixels(), compress="deflate", BIGTIFF="NO")
    with pytest.raises(NotACog, match="samples of 16 bits and kind 3 are not read"):
        whole_header(edited(data, tiff.SAMPLE_FORMAT, 3, 3))


def placed(data, tag, numbers):
    """A classic little-endian TIFF with the first of a field's float64 numbers set anew."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, at)
    for i in range(at + 2, at + 2 + 12 * entries, 12):
        found, _, _, place = struct.unpack_from("<HHII", out, i)
        if found == tag:
            struct.pack_into(f"<{len(numbers)}d", out, place, *numbers)
            return bytes(out)
    raise AssertionError(f"no field {tag}")


@pytest.mark.parametrize(
    ("tag", "numbers"),
    [
        (tiff.PIXEL_SCALE, (-20.0,)),
        (tiff.PIXEL_SCALE, (20.0, 0.0)),
        (tiff.TIE_POINTS, (0, 0, 0, math.inf)),
        (tiff.TIE_POINTS, (math.nan,)),
    ],
)
def test_a_place_that_makes_no_sense_is_none(tmp_path, tag, numbers):
    data = write(tmp_path, some_pixels(), compress="deflate", BIGTIFF="NO")
    assert whole_header(data).transform == tuple(GRID)[:6]
    assert whole_header(placed(data, tag, numbers)).transform is None


def test_words_that_lie_far_into_the_file_are_left_out_rather_than_fetched(tmp_path):
    write(tmp_path, some_pixels(), compress="deflate", BIGTIFF="NO")
    with rasterio.open(tmp_path / "f.tif", "r+") as file:
        file.update_tags(SAID="something")
    data = bytearray((tmp_path / "f.tif").read_bytes())
    assert "something" in whole_header(bytes(data)).text(tiff.GDAL_METADATA)
    (at,) = struct.unpack_from("<I", data, 4)
    for i in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        if struct.unpack_from("<H", data, i)[0] == tiff.GDAL_METADATA:
            struct.pack_into("<I", data, i + 8, tiff.MAX_METADATA_BYTES)
    header = parse_header(bytes(data), 1 << 30)
    assert header.text(tiff.GDAL_METADATA) == ""
    assert header.transform == tuple(GRID)[:6]


def test_strips_are_refused(tmp_path):
    with pytest.raises(NotACog, match="in strips, not in tiles"):
        whole_header(write(tmp_path, some_pixels(), tiled=False, blockxsize=80, blockysize=8))


def test_two_bands_are_refused(tmp_path):
    data = np.stack([some_pixels()] * 2)
    options = {"driver": "GTiff", "height": 64, "width": 80, "count": 2, "dtype": "uint16", "tiled": True}
    with rasterio.open(tmp_path / "two.tif", "w", blockxsize=16, blockysize=16, transform=GRID, **options) as file:
        file.write(data)
    with pytest.raises(NotACog, match="has 2 bands, one was expected"):
        whole_header((tmp_path / "two.tif").read_bytes())


@pytest.mark.parametrize(
    ("tag", "kind", "value", "words"),
    [
        (tiff.WIDTH, 4, 0, "64 x 0 px"),
        (tiff.WIDTH, 4, 1 << 30, "1,073,741,824 px"),
        (tiff.WIDTH, 4, 8000, "20 tiles and 20 sizes are listed for 4 x 500 tiles"),
        (tiff.TILE_WIDTH, 3, 15, "multiples of 16"),
        (tiff.TILE_WIDTH, 4, 1 << 24, "bytes each"),
        (tiff.BITS, 3, 24, "24 bits"),
        (tiff.SAMPLE_FORMAT, 3, 5, "kind 5"),
        (tiff.PREDICTOR, 3, 9, "predictor 9"),
        (tiff.PHOTOMETRIC, 3, 0, "inverted"),
        (tiff.WIDTH, 11, 0, "numbers were expected"),
    ],
)
def test_sizes_and_codings_that_cannot_be_are_refused(tmp_path, tag, kind, value, words):
    data = write(tmp_path, some_pixels(), compress="deflate", predictor=2, BIGTIFF="NO")
    with pytest.raises(NotACog, match=words):
        whole_header(edited(data, tag, kind, value))


def first_behind_the_end(offsets, counts):
    offsets[0] = 1 << 30


def first_over_the_second(offsets, counts):
    counts[0] += 1 + int(offsets[1]) - int(offsets[0]) - int(counts[0])


def a_tile_of_many_times_its_pixels(offsets, counts):
    counts[0] = 9000


def a_size_without_a_place(offsets, counts):
    offsets[3] = 0


def a_place_without_a_size(offsets, counts):
    counts[3] = 0


def in_the_first_bytes(offsets, counts):
    offsets[3], counts[3] = 2, 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first_behind_the_end, "out of the file"),
        (first_over_the_second, "over one another"),
        (a_tile_of_many_times_its_pixels, "larger than it can be"),
        (a_size_without_a_place, "a size and no place"),
        (a_place_without_a_size, "a place and no size"),
        (in_the_first_bytes, "over one another"),
    ],
)
def test_tiles_that_cannot_be_where_they_are_said_to_be_are_refused(tmp_path, change, words):
    data = write(tmp_path, some_pixels(shape=(160, 160)), compress="deflate", BIGTIFF="NO")
    with pytest.raises(NotACog, match=words):
        whole_header(with_tiles(data, change))


def test_a_header_behind_the_pixels_is_refused_where_that_is_far(tmp_path):
    data = write(tmp_path, some_pixels(), compress="deflate", BIGTIFF="NO")
    far = data[:4] + struct.pack("<I", tiff.MAX_HEADER_BYTES) + data[8:]
    with pytest.raises(NotACog, match="not laid out as a COG"):
        parse_header(far, 1 << 30)
    near = data[:4] + struct.pack("<I", 1 << 20) + data[8:]
    with pytest.raises(MoreNeeded):
        parse_header(near, 1 << 30)


def test_the_first_guess_holds_the_header_of_a_sentinel_2_band(tmp_path):
    layout = Layout(10980, 10980, 1, "uint16", 512, 0, 32633, tuple(GRID)[:6], codec="deflate")
    data = assemble(layout, {})
    header = parse_header(data[: 32 << 10], len(data))
    assert (header.epsg, header.transform, header.nodata) == (32633, tuple(GRID)[:6], 0)
