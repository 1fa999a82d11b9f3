import dataclasses
import struct
import threading
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jp2_files import GRID, URL, Shelf, get, join, jp2, listed, put, some_pixels, sparse, split, whole

from transforms import jp2_parts
from transforms.fetching import FetchError
from transforms.jp2_decode import parse_header
from transforms.remote import HEAD_BYTES, HeaderCache, Reads, assumed_reads, plan_reads
from transforms.scenes import Asset
from transforms.tiff import Window

FEW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


SHAPES = {  # 10 m and 20 m bands scaled down: tiles that end in the raster's last row and column cut short, or not
    "10 m": ((343, 343), np.uint16, 15, 32),
    "20 m": ((171, 171), np.uint16, 16, 32),
    "classes": ((171, 171), np.uint8, None, 64),
    "odd": ((97, 130), np.uint16, 15, 128),
    "whole tiles": ((128, 192), np.uint16, 15, 64),
}


@pytest.fixture(scope="module")
def files():
    out = {}
    for name, (shape, dtype, nbits, tile_px) in SHAPES.items():
        pixels = some_pixels(shape, dtype, 250 if dtype == np.uint8 else 9000)
        out[name] = (pixels, jp2(pixels, tile_px, nbits=nbits), jp2(pixels, tile_px, nbits=nbits, TLM="YES"))
    return out


@pytest.mark.parametrize("name", SHAPES)
@settings(FEW)
@given(st.data())
def test_a_window_is_bit_by_bit_what_gdal_reads_of_the_whole_file(files, name, draw):
    pixels, *copies = files[name]
    h, w = pixels.shape
    r, c = draw.draw(st.integers(0, h - 1)), draw.draw(st.integers(0, w - 1))
    window = Window(r, c, draw.draw(st.integers(1, h - r)), draw.draw(st.integers(1, w - c)))
    for data in copies:
        got, header = get(data, window)
        assert got.dtype == pixels.dtype
        np.testing.assert_array_equal(got, whole(data)[r : r + window.height_px, c : c + window.width_px])
        np.testing.assert_array_equal(got, pixels[r : r + window.height_px, c : c + window.width_px])
        assert (header.height_px, header.width_px, header.nodata) == (h, w, None)


@pytest.mark.parametrize("transform", [GRID, Affine(20, 0, 600000, 0, -20, 9000040)])
def test_the_grid_is_the_one_that_gdal_reads(transform):
    data = jp2(some_pixels((70, 90)), transform=transform, epsg=32733)
    _, header = get(data, None)
    assert (header.epsg, header.transform, header.dtype) == (32733, tuple(transform)[:6], "uint16")


@pytest.mark.parametrize("without", ["uuid", "asoc"])
def test_the_grid_is_read_of_gml_alone_as_esa_writes_it_or_of_geojp2_alone(without):
    boxes, main, parts = split(jp2(some_pixels((70, 90))))
    kept, at = [], 0
    while at < len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, at)
        if kind != without.encode():
            kept.append(boxes[at : at + size])
        at += size
    _, header = get(join(b"".join(kept), main, parts), None)
    assert (header.epsg, header.transform) == (32633, (10, 0, 399960, 0, -10, 4500000))


def test_a_file_without_a_grid_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        _, header = get(jp2(some_pixels((70, 90)), transform=Affine.identity(), epsg=None), None)
    assert (header.epsg, header.transform) == (None, None)


@pytest.mark.parametrize("options", [{"PROGRESSION": "RPCL"}, {"SOP": "YES", "EPH": "YES"}, {"RESOLUTIONS": 2},
                                     {"PLT": "YES", "TLM": "YES"}, {"PRECINCTS": "{32,32}"}, {"CODEBLOCK_WIDTH": 16},
                                     {"RESOLUTIONS": 6}])  # fmt: skip
def test_every_way_to_order_and_cut_the_packets_is_read(options):
    pixels = some_pixels((200, 210))
    np.testing.assert_array_equal(get(jp2(pixels, **options), Window(60, 60, 140, 150))[0], pixels[60:, 60:])


@pytest.mark.parametrize("tile_bytes", [0, 1, 2])
def test_every_form_of_the_list_of_tiles_is_read(tile_bytes):
    pixels = some_pixels()
    data = listed(jp2(pixels), tile_bytes)
    shelf = Shelf(data)
    np.testing.assert_array_equal(get(data, Window(200, 200, 20, 20), shelf)[0], pixels[200:220, 200:220])
    assert len(shelf.asked) <= 2


# What moves


def large():
    """A file of 4 x 4 tiles that are too large to find their heads in passing."""
    rng = np.random.default_rng(3)
    return rng.integers(1, 30_000, (1000, 1000)).astype(np.uint16)


@pytest.fixture(scope="module")
def big():
    pixels = large()
    return pixels, jp2(pixels, 256, nbits=15), jp2(pixels, 256, nbits=15, TLM="YES")


def test_a_listed_file_is_one_request_and_one_for_each_row_of_tiles(big):
    pixels, _, data = big
    shelf, cache = Shelf(data), HeaderCache()
    got, header = get(data, Window(256, 256, 512, 512), shelf, cache)
    np.testing.assert_array_equal(got, pixels[256:768, 256:768])
    assert len(shelf.asked) == 3
    moved = sum(b - a for a, b in shelf.asked[1:])
    assert moved == sum(part.size for part in header.image.parts.of([5, 6, 9, 10], None))  # not a byte besides


def test_of_an_unlisted_file_only_the_heads_up_to_the_last_wanted_tile_are_read_once(big):
    pixels, data, _ = big
    shelf, cache = Shelf(data), HeaderCache()
    assert min(len(part) for _, part in split(data)[2]) > jp2_parts.SMALL_PART_BYTES
    get(data, Window(0, 256, 256, 512), shelf, cache)
    assert [b - a for a, b in shelf.asked[1:-1]] == [12, 12]  # tiles 1 and 2; the head of 0 came with the header
    shelf.asked.clear()
    got, _ = get(data, Window(256, 0, 256, 512), shelf, cache)
    np.testing.assert_array_equal(got, pixels[256:512, :512])
    assert [b - a for a, b in shelf.asked[:-1]] == [12] * 3  # 3, 4 and 5
    shelf.asked.clear()
    get(data, Window(0, 0, 512, 512), shelf, cache)
    assert len(shelf.asked) == 2  # both rows, nothing to be found


def test_heads_of_small_tiles_are_found_many_at_a_time():
    pixels = some_pixels((900, 900))
    data = jp2(pixels, 64)
    shelf = Shelf(data)
    np.testing.assert_array_equal(get(data, Window(880, 880, 20, 20), shelf)[0], pixels[880:, 880:])
    assert len(split(data)[2]) == 225
    assert len(shelf.asked) <= 2 + -(-len(data) // jp2_parts.HOP_BYTES)


@settings(FEW, max_examples=10)
@given(st.data())
def test_what_is_planned_is_what_is_asked_for(big, draw):
    r, c = draw.draw(st.integers(0, 999)), draw.draw(st.integers(0, 999))
    window = Window(r, c, draw.draw(st.integers(1, 1000 - r)), draw.draw(st.integers(1, 1000 - c)))
    for data in big[1:]:
        shelf, cache = Shelf(data), HeaderCache()
        first = parse_header(data[:HEAD_BYTES], len(data))
        for known in (False, True):  # the second time all heads are known too
            planned = plan_reads(first, window, known)
            shelf.asked.clear()
            _, header = get(data, window, shelf, cache)
            first = header
            assert planned.requests == len(shelf.asked)
            if known or data is big[2]:
                assert planned.moved_bytes == sum(b - a for a, b in shelf.asked)
            area = window.height_px * window.width_px
            assert planned.needed_bytes == pytest.approx(len(data) * area / 1e6, rel=0.2, abs=3000)


def test_without_a_header_a_name_that_ends_in_jp2_costs_a_request_for_every_tile_on_the_way():
    asset = Asset("B04", URL, 32633, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), 10980, 10980, size_bytes=120_000_000)
    on = assumed_reads(asset, Window(2048, 4096, 2048, 2048))
    assert on.requests == 1 + (3 * 11 + 5) + 2  # head, heads of tiles 1 to 38, two rows
    assert on.needed_bytes == round(120e6 * 2048**2 / 10980**2)  # a JP2 has no overviews
    assert assumed_reads(asset, Window(2048, 4096, 2048, 2048), known=True) == Reads(
        2, on.needed_bytes, on.needed_bytes
    )
    assert assumed_reads(dataclasses.replace(asset, href="a.tif"), Window(2048, 4096, 2048, 2048)).requests == 3


def test_many_threads_find_the_way_through_one_file_once(big):
    pixels, data, _ = big
    shelf, cache = Shelf(data), HeaderCache()
    wrong = []

    def look(i):
        got, _ = get(data, Window(750, 10 * i, 200, 200), shelf, cache)
        if not (got == pixels[750:950, 10 * i : 10 * i + 200]).all():
            wrong.append(i)

    threads = [threading.Thread(target=look, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    heads = [a for a in shelf.asked if a[1] - a[0] == 12]
    assert len(heads) == len(set(heads))


# A file that changes, is cut, lies


def test_a_file_that_changes_on_the_way_is_read_anew_and_is_all_of_one_version(big):
    _, data, _ = big
    other = jp2(large()[::-1], 256, nbits=15)
    shelf = Shelf(data)

    def change():
        shelf.data, shelf.tag = other, "v2"

    shelf.now[3] = change
    got, _ = get(data, Window(500, 0, 500, 1000), shelf)
    np.testing.assert_array_equal(got, large()[::-1][500:])


def test_a_file_that_changes_again_and_again_is_an_error(big):
    shelf = Shelf(big[1])

    def change():
        shelf.tag += "x"

    shelf.now = dict.fromkeys(range(50), change)
    with pytest.raises(FetchError) as e:
        get(big[1], Window(500, 0, 500, 1000), shelf)
    assert e.value.kind == "changed"


def test_tile_parts_of_one_tile_may_lie_apart():
    """A tile in two parts, the second behind all others: cut between two packets, and put together again."""
    pixels = some_pixels((120, 120))
    boxes, main, parts = split(jp2(pixels, 64, PLT="YES", RESOLUTIONS=2))
    tile, data = parts[1]
    at = data.index(b"\xff\x93") + 2
    (size,) = struct.unpack_from(">H", data, 14)
    first, shift, lengths = 0, 0, []
    for byte in data[17 : 14 + size]:  # PLT: seven bits a byte, the highest one says that more come
        first, shift = first << 7 | byte & 0x7F, byte & 0x80
        if not shift:
            lengths.append(first)
            first = 0
    cut = at + lengths[0]
    head = data[12 + 2 + size : at]  # no PLT any more
    one = data[:12] + head + data[at:cut]
    two = data[:12] + b"\xff\x93" + data[cut:]
    one = put(one, 6, ">IBB", len(one), 0, 2)
    two = put(two, 6, ">IBB", len(two), 1, 2)
    apart = join(boxes, main, [parts[0], (tile, one), *parts[2:], (tile, two)])
    for made in (apart, listed(apart)):
        np.testing.assert_array_equal(whole(made), pixels)
        np.testing.assert_array_equal(get(made, Window(0, 0, 120, 120))[0], pixels)
        np.testing.assert_array_equal(get(made, Window(3, 70, 5, 5))[0], pixels[3:8, 70:75])


def test_the_tests_own_sparse_file_is_what_gdal_takes_it_for():
    """`jp2_files.sparse`, with which whole tiles of a planet are written."""
    rng = np.random.default_rng(5)
    pixels = np.zeros((1000, 840), np.uint16)
    pixels[256:512, 512:768] = rng.integers(1, 9000, (256, 256))
    pixels[768:, 768:] = rng.integers(1, 9000, (232, 72))
    tiles = {(1, 2): pixels[256:512, 512:768], (3, 3): pixels[768:, 768:]}
    grid = GRID
    for with_list in (False, True):
        data = sparse(tiles, 1000, 840, 256, np.uint16, grid, 32633, with_list)
        np.testing.assert_array_equal(whole(data), pixels)
        np.testing.assert_array_equal(get(data, Window(0, 0, 1000, 840))[0], pixels)
