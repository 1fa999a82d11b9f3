import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.cog import decode_tile
from transforms.fragments import (
    NO_OPTICAL,
    NO_RADAR,
    OUTSIDE,
    RASTERS,
    compress,
    layouts_of,
    part_of,
    places_of,
    reasons_of,
)
from transforms.grid import TILE_PX, blocks_of, tile_of
from transforms.preview import Colours, paint

DIMS = 4
LAYOUTS = layouts_of(tile_of("33TWL"), DIMS, ())
COLOURS = Colours(((1 << 14, 0, 0, 0), (0, 1 << 14, 0, 0), (0, 0, 1 << 14, 0)), (-5.0,) * 3, (5.0,) * 3)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def block(H, W, seed=0, share=0.6):
    """Codes, scale, counts, reasons of a block, of which `share` is embedded; columns 128.. of row 0.. hold nothing."""
    rng = np.random.default_rng(seed)
    there = rng.random((H, W)) < share
    there[:COG_TILE_PX, COG_TILE_PX:] = False
    codes = np.where(there[..., None], rng.integers(-127, 128, (H, W, DIMS)), -128).astype(np.int8)
    scale = np.where(there, rng.uniform(0.01, 0.1, (H, W)), np.nan).astype(np.float32)
    counts = (rng.integers(1, 90, (H, W, 3)) * there[..., None]).astype(np.uint16)
    return codes, scale, counts, reasons_of(counts, np.ones((H, W), bool))


def joined(tiles, name, H, W):
    """The raster that a fragment's tiles hold."""
    across = -(-W // COG_TILE_PX)
    rows = [
        np.concatenate([decode_tile(t, LAYOUTS[name]) for t in tiles[k : k + across]], axis=1)
        for k in range(0, len(tiles), across)
    ]
    return np.concatenate(rows)[:H, :W]


@pytest.mark.parametrize(("H", "W"), [(256, 256), (300, 140), (128, 384), (1, 1), (36, 257)])
def test_a_fragment_holds_the_arrays_it_was_made_of(pool, H, W):
    codes, scale, counts, reasons = block(H, W)
    tiles = compress(codes, scale, counts, reasons, COLOURS, LAYOUTS, pool)
    assert list(tiles) == list(RASTERS)
    assert {len(t) for t in tiles.values()} == {-(-H // COG_TILE_PX) * -(-W // COG_TILE_PX)}
    for name, wanted in {
        "embeddings": codes,
        "scales": scale[..., None],
        "observations": counts,
        "reasons": reasons[..., None],
        "preview": paint(codes, scale, COLOURS),
    }.items():
        np.testing.assert_array_equal(joined(tiles[name], name, H, W), wanted, err_msg=name)


def test_tiles_beyond_the_block_are_nodata(pool):
    # The last blocks of a tile end inside a COG tile; what is beyond the tile's edge must read as nodata.
    codes, scale, counts, reasons = block(36, 36)
    tiles = compress(codes, scale, counts, reasons, COLOURS, LAYOUTS, pool)
    for name in RASTERS:
        whole = decode_tile(tiles[name][0], LAYOUTS[name]).astype(np.float64)
        fill = np.nan if name == "scales" else LAYOUTS[name].fill
        np.testing.assert_array_equal(whole[36:], np.full_like(whole[36:], fill), err_msg=name)


def test_rows_of_nothing_are_empty_tiles_whichever_way_they_come(pool):
    # A block of nothing has no codes at all; a block of which some rows hold nothing has -128 there. Same bytes.
    codes, scale, counts, reasons = block(256, 256)
    codes[:128], scale[:128], counts[:128] = -128, np.nan, 0
    reasons = reasons_of(counts, np.ones((256, 256), bool))
    some = compress(codes, scale, counts, reasons, COLOURS, LAYOUTS, pool)
    none = compress(None, scale[:128] * np.nan, counts[:128], reasons[:128], COLOURS, LAYOUTS, pool)
    filled = compress(codes[:128], scale[:128], counts[:128], reasons[:128], COLOURS, LAYOUTS, pool)
    for name in RASTERS:
        assert some[name][:2] == none[name] == filled[name]
    for name in ("embeddings", "scales", "observations", "preview"):
        assert none[name] == [b"", b""]
    assert all(none["reasons"])  # why nothing is there is something


def test_outside_a_region_nothing_is_stored(pool):
    shape = (128, 256)
    outside = reasons_of(np.zeros((*shape, 3), np.uint16), np.zeros(shape, bool))
    nan = np.full(shape, np.nan, np.float32)
    tiles = compress(None, nan, np.zeros((*shape, 3), np.uint16), outside, COLOURS, LAYOUTS, pool)
    assert tiles == {name: [b"", b""] for name in RASTERS}


def test_an_empty_tile_between_full_ones_is_the_same_as_in_a_row_of_nothing(pool):
    # The left tile of the row has data, the right one has none: it is found empty by its own pixels.
    codes, scale, counts, reasons = block(128, 256)
    tiles = compress(codes, scale, counts, reasons, COLOURS, LAYOUTS, pool)
    for name in ("embeddings", "scales", "observations", "preview"):
        assert [bool(t) for t in tiles[name]] == [True, False]


def test_the_same_pixels_are_the_same_bytes_in_blocks_of_any_size(pool):
    codes, scale, counts, reasons = block(384, 256, share=0.9)
    whole = compress(codes, scale, counts, reasons, COLOURS, LAYOUTS, pool)
    for row, col in itertools.product((0, 1, 2), (0, 1)):
        where = slice(row * 128, row * 128 + 128), slice(col * 128, col * 128 + 128)
        one = compress(codes[where], scale[where], counts[where], reasons[where], COLOURS, LAYOUTS, pool)
        for name in RASTERS:
            assert one[name] == [whole[name][row * 2 + col]]


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_a_part_s_record_is_of_its_tiles_one_after_another(tiles):
    part = part_of(tiles)
    data = b"".join(tiles)
    assert part["sizes"] == [len(t) for t in tiles]
    assert part["size_bytes"] == len(data)
    assert part["sha256"] == hashlib.sha256(data).hexdigest()
    assert int(part["crc32c"], 16) == google_crc32c.value(data)
    assert len(part["crc32c"]) == 8


def test_the_crc_is_castagnoli_s():
    assert part_of([b"1234", b"56789"])["crc32c"] == "e3069283"  # the check value of CRC-32C (RFC 3720, B.4)


@settings(deadline=None)
@given(st.sampled_from([256, 512, 2048, 2304, 10752]))
def test_the_places_of_a_tile_s_blocks_cover_its_cog_once_in_the_order_of_the_fragments(block_px):
    side = -(-TILE_PX // COG_TILE_PX)
    seen = np.zeros((side, side), int)
    for b in blocks_of("33TWL", block_px):
        places = list(places_of(b.row_px, b.col_px, b.height_px, b.width_px))
        assert len(places) == -(-b.height_px // COG_TILE_PX) * -(-b.width_px // COG_TILE_PX)
        assert places == sorted(places)  # row by row, as `compress` puts them
        assert places[0] == (b.row_px // COG_TILE_PX, b.col_px // COG_TILE_PX)
        for row, col in places:
            seen[row, col] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("optical", [0, 1, 300])
@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 256), (256, 0), (3, 5)])
def test_a_reason_says_what_was_missing_and_nothing_beside_it(wanted, optical, up, down):
    counts = np.array([[[optical, up, down], [1, 1, 1]]], np.uint16)
    got = reasons_of(counts, np.array([[wanted, True]]))
    if not wanted:
        expected = OUTSIDE
    elif not optical:
        expected = NO_OPTICAL
    else:
        expected = NO_RADAR if not (up or down) else 0
    assert got.dtype == np.uint8
    assert got.tolist() == [[expected, 0]]


def test_layouts_are_of_the_whole_tile_and_say_what_is_not_stored():
    assert list(LAYOUTS) == list(RASTERS)
    for layout in LAYOUTS.values():
        assert (layout.height_px, layout.width_px, layout.tile_px, layout.epsg) == (10980, 10980, 128, 32633)
        assert layout.transform == (10.0, 0.0, tile_of("33TWL").left_m, 0.0, -10.0, tile_of("33TWL").top_m)
    assert LAYOUTS["embeddings"].nodata == -128
    assert np.isnan(LAYOUTS["scales"].nodata)
    assert LAYOUTS["observations"].nodata is None
    assert LAYOUTS["reasons"].nodata == OUTSIDE
    assert [layout.bands for layout in LAYOUTS.values()] == [DIMS, 1, 3, 1, 3]
