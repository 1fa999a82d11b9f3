"""What reading a tile's blocks takes, foreseen and counted."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.families import profile_for
from model.profile import ES_C1, OPERA_RTC, PC_RTC
from transforms import traffic
from transforms.catalogs.source import S2_PIXEL_M
from transforms.cog import Layout, assemble, encode_tile
from transforms.dpixels import read_stack
from transforms.fetching import Piece, Version
from transforms.grid import TILE_PX, blocks_of, tile_of
from transforms.read import centres_in, halo_px, source_positions
from transforms.remote import FILE_BYTES_A_PIXEL, FULL_SHARE, HEAD_BYTES, assumed_reads, use_fetcher
from transforms.scenes import ASCENDING, S1, S2, Asset, Scene
from transforms.tiff import Window
from transforms.traffic import FILE_TILE_PX, FILE_TILE_PX_OF, Traffic, files_of, whole_windows, windows_of

V2 = profile_for("v2", 128)
NEAREST = profile_for("v1.1-mpc+nearest", 128)
AWS = profile_for("v1.1-aws", 128)
TILE = tile_of("33TWL")
HOST = "https://h/a/"


def scene(sensor, source, assets, n=0, **changed):
    when = f"2024-{n % 12 + 1:02d}-03T10:00:00.000000Z"
    fields = {
        "tile": TILE.name, "sensor": sensor, "source": source, "id": f"{sensor}{n}", "datetime": when, "order": n,
        "orbit": ASCENDING, "relative_orbit": 22, "platform": "", "baseline": "05.11", "cloud_cover": 1.0,
        "datatake": "", "generated": "", "offset_dn": 0, "offset_reason": "", "kept": True, "dropped_reason": "",
        "assets": tuple(assets),
    }  # fmt: skip
    return Scene(**fields | changed)


def optical(side_m=109_800, n=0, root=HOST, sizes=lambda band: None):
    assets = [
        Asset(
            band, f"{root}{band}.tif", TILE.epsg, (px, 0.0, TILE.left_m, 0.0, -px, TILE.top_m), side_m // px,
            side_m // px, sizes(band),
        )
        for band, px in ((b, float(p)) for b, p in S2_PIXEL_M.items())
    ]  # fmt: skip
    assets = [dataclasses.replace(a, height_px=int(a.height_px), width_px=int(a.width_px)) for a in assets]
    return scene(S2, ES_C1, assets, n)


def radar(epsg=TILE.epsg, left=TILE.left_m - 3000, top=TILE.top_m + 5000, px=10.0, shape=(3000, 2600), n=0, **changed):
    assets = [
        Asset(band, f"{HOST}{band}.tif", epsg, (px, 0.0, float(left), 0.0, -px, float(top)), *shape)
        for band in ("VV", "VH")
    ]
    return scene(S1, changed.pop("source", PC_RTC), assets, n, **changed)


@functools.lru_cache(maxsize=1000)
def edge_centres(epsg, rows, cols):
    """Of the pixels along a window's edges: no other lies further out."""
    ends = [(rows[:1], cols), (rows[-1:], cols), (rows, cols[:1]), (rows, cols[-1:])]
    both = [centres_in(TILE, epsg, *end) for end in ends]
    return tuple(np.concatenate([centres[k].ravel() for centres in both]) for k in (0, 1))


def traffic_of(scenes, roots, profile, tile, windows):
    return traffic.traffic_of(files_of(scenes, roots, profile, tile), tile, windows)


def window_of(asset, profile, box, classes):
    """The window that the readers ask for, by their own arithmetic; None where it lies beside the file."""
    rows, cols = range(int(box[0]), int(box[1])), range(int(box[2]), int(box[3]))
    bilinear = profile.s1_resampling == "bilinear"
    if asset.epsg == TILE.epsg:
        if asset.band in ("VV", "VH"):
            halo = int(bilinear)
        else:
            halo = halo_px(asset, TILE) if profile.s2_resampling == "bilinear" and not classes else 0
        v, u = source_positions(asset.transform, TILE, rows, cols)
        low, high = (v[0], u[0]), (v[-1], u[-1])
    else:
        halo = int(bilinear)
        a, _, c, _, e, f = asset.transform
        x, y = edge_centres(asset.epsg, rows, cols)
        low, high = ((y.max() - f) / e, (x.min() - c) / a), ((y.min() - f) / e, (x.max() - c) / a)
    first = [max(int(np.floor(p)) - halo, 0) for p in low]
    stop = [min(int(np.floor(p)) + halo + 1, n) for p, n in zip(high, (asset.height_px, asset.width_px), strict=True)]
    if stop[0] <= first[0] or stop[1] <= first[1]:
        return None
    return Window(first[0], first[1], stop[0] - first[0], stop[1] - first[1])


def slow_traffic(scenes, profile, windows):
    """Block by block, scene by scene and band by band."""
    ranges = headers = again = 0
    moved = 0.0
    for s in scenes:
        for a in s.assets:
            classes = a.band == "SCL"
            a = dataclasses.replace(a, size_bytes=FILE_BYTES_A_PIXEL.get(a.band, 1.2) * a.height_px * a.width_px)
            opened = set()
            for box in windows.strips if classes else windows.boxes:
                window = window_of(a, profile, box[:4], classes)
                if window is not None:
                    reads = assumed_reads(a, window, FILE_TILE_PX_OF.get(s.source, FILE_TILE_PX), known=True)
                    ranges, moved = ranges + reads.requests, moved + reads.moved_bytes
                if window is not None or a.epsg == TILE.epsg:
                    opened.add(int(box[4]))
            headers, again = headers + bool(opened), again + len(opened)
            moved += len(opened) * min(HEAD_BYTES, a.size_bytes)
    return ranges, headers, again, moved


# ---- the windows


def test_the_windows_of_a_tile_are_its_blocks_in_strips():
    windows = whole_windows(2048, 512)
    assert windows.blocks == 36 and windows.boxes is windows.strips
    seen = np.zeros((TILE_PX, TILE_PX), np.uint8)
    for r0, r1, c0, c1, _ in windows.strips:
        assert r1 - r0 <= 512
        seen[r0:r1, c0:c1] += 1
    assert seen.min() == seen.max() == 1
    with pytest.raises(BadInput, match="multiple of 256"):
        whole_windows(1000, 512)


def test_of_a_region_scene_classes_are_read_for_whole_strips_and_the_rest_for_the_box_of_what_is_wanted():
    wanted = np.zeros((TILE_PX, TILE_PX), bool)
    wanted[600:640, 100:2100] = True
    blocks = [b for b in blocks_of(TILE.name, 1024) if wanted[b.row_px :, b.col_px :][:1024, :1024].any()]
    windows = windows_of(blocks, 512, wanted)
    assert windows.blocks == 3
    assert windows.strips.tolist() == [
        [row, row + 512, n * 1024, (n + 1) * 1024, n] for n in range(3) for row in (0, 512)
    ]
    assert windows.boxes.tolist() == [[600, 640, 100, 1024, 0], [600, 640, 1024, 2048, 1], [600, 640, 2048, 2100, 2]]


# ---- what they take, against the slow sum


PLACES = st.builds(
    lambda zone, left, top, h, w: radar(
        32600 + zone, (TILE.left_m if zone == 33 else TILE.left_m + 430_000) + 10 * left, TILE.top_m + 10 * top,
        shape=(h, w),
    ),
    st.sampled_from([33, 33, 32]), st.integers(-3000, 9000), st.integers(-9000, 3000), st.integers(1, 20_000),
    st.integers(1, 20_000),
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(
    st.lists(PLACES, max_size=3),
    st.sampled_from([(2048, 2048), (2048, 1024), (1024, 384), (4096, 4096)]),
    st.sampled_from(["v2", "v1.1-mpc+nearest", "v1.1-aws"]),
    st.data(),
)
def test_some_blocks_take_what_their_windows_take_one_by_one(passes, sizes, family, draw):
    profile = profile_for(family, 128)
    scenes = [optical(), optical(21_000, 1), *passes]
    blocks = list(blocks_of(TILE.name, sizes[0]))
    some = draw.draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=5, unique=True))
    windows = windows_of(some, sizes[1])
    fast = traffic_of(scenes, {}, profile, TILE, windows)
    ranges, headers, again, moved = slow_traffic(scenes, profile, windows)
    if all(a.epsg == TILE.epsg for s in scenes for a in s.assets):
        assert (fast.ranges, fast.headers, fast.headers_again) == (ranges, headers, again)
        assert fast.moved_bytes == pytest.approx(moved, rel=1e-3)
    else:  # windows in another zone are foreseen from their corners: a few pixels larger than they are
        assert ranges <= fast.ranges <= 1.15 * ranges + 8
        assert headers <= fast.headers <= headers + 2 * len(passes) and again <= fast.headers_again
        assert 0.999 * moved <= fast.moved_bytes <= 1.15 * moved + 1e7


def test_a_block_of_1024_px_moves_nearly_twice_its_bytes_where_nothing_is_mixed_and_more_with_halos():
    """The figure of Earth Search: files of 20 m have internal tiles of 20 km, so that a small block reads four times
    what it needs of them; the pixel around it that bilinear bands want makes it more."""
    per_needed = {
        (profile.name, side): traffic_of([optical()], {}, profile, TILE, whole_windows(side, side)).moved_per_needed
        for profile in (NEAREST, V2)
        for side in (1024, 2048)
    }
    assert per_needed[NEAREST.name, 2048] < 1.1
    assert 1.7 < per_needed[NEAREST.name, 1024] < 2.0
    assert per_needed[V2.name, 2048] > 2.5
    assert per_needed[V2.name, 1024] > 3.5


def test_needed_bytes_are_the_same_whatever_the_block():
    scenes = [optical(), radar(), radar(32632, TILE.left_m + 430_000, TILE.top_m, shape=(9000, 9000))]
    one, other = (
        traffic_of(scenes, {}, V2, TILE, whole_windows(side, strip)) for side, strip in ((2048, 2048), (1024, 256))
    )
    assert one.needed_bytes == pytest.approx(other.needed_bytes, rel=0.02)
    assert other.moved_bytes > one.moved_bytes


def test_files_on_disk_need_bytes_and_no_request():
    local = traffic_of([optical(root="")], {ES_C1: "/data"}, V2, TILE, whole_windows(2048, 2048))
    served = traffic_of([optical(root="")], {ES_C1: "https://h/a"}, V2, TILE, whole_windows(2048, 2048))
    assert (local.requests, local.requests_at_most, local.moved_bytes, local.moved_per_needed) == (0, 0, 0, None)
    assert local.local_bytes == served.needed_bytes > 1e8 and served.local_bytes == 0


def test_scenes_that_are_left_out_and_files_that_nobody_reads_cost_nothing():
    dropped = dataclasses.replace(optical(), kept=False)
    extra = scene(S1, PC_RTC, [dataclasses.replace(radar().assets[0], band="HH")])
    assert traffic_of([dropped, extra], {}, V2, TILE, whole_windows(2048, 2048)) == Traffic()
    assert traffic_of([optical()], {}, V2, TILE, windows_of([], 256)) == Traffic()


def test_a_file_two_forwards_away_takes_three_requests_to_begin_with():
    once, thrice = (
        traffic_of([radar(px=30.0, source=source)], {}, AWS, TILE, whole_windows(2048, 2048))
        for source in (PC_RTC, OPERA_RTC)
    )
    assert (thrice.headers, thrice.headers_again) == (3 * once.headers, 3 * once.headers_again)
    assert thrice.ranges == once.ranges and thrice.moved_bytes == once.moved_bytes


def test_a_row_of_tiles_longer_than_a_range_may_be_is_more_requests():
    wide = radar(left=TILE.left_m, top=TILE.top_m, shape=(10_980, 10_980))
    heavy = dataclasses.replace(
        wide, assets=tuple(dataclasses.replace(a, size_bytes=10_980**2 * 4) for a in wide.assets)
    )
    windows = whole_windows(11_008, 11_008)
    assert traffic_of([heavy], {}, V2, TILE, windows).ranges > traffic_of([wide], {}, V2, TILE, windows).ranges


# ---- and against what reading really asks for


class Counting:
    """Files in memory behind `Fetch`, and what was asked of them."""

    def __init__(self, files):
        self.files, self.requests, self.moved_bytes = files, 0, 0

    def __call__(self, url, start, stop, version):
        data = self.files[url]
        piece = Piece(data[start:stop], Version(len(data), "v"))
        self.requests += 1
        self.moved_bytes += len(piece.data)
        return piece


def cog_of(asset, side, value=None):
    """A COG full of noise, for which one picture is compressed and stored in every internal tile."""
    dtype = {"SCL": "uint8", "VV": "float32", "VH": "float32"}.get(asset.band, "uint16")
    nodata = -32768 if dtype == "float32" else 0
    size = asset.height_px, asset.width_px
    layout = Layout(*size, 1, dtype, side, nodata, asset.epsg, asset.transform, codec="deflate", predictor=1)
    noise = np.random.default_rng(1).integers(1, 4000, (side, side, 1))
    tile = encode_tile((np.full_like(noise, value) if value else noise).astype(dtype), layout)
    places = [(i, j) for i in range(layout.tiles_down) for j in range(layout.tiles_across)]
    return assemble(layout, dict.fromkeys(places, tile))


@pytest.fixture(scope="module")
def shelf():
    """An optical date of 41 km and two passes, one of the other zone, with their files by URL."""
    scenes = [
        optical(40_960),
        radar(shape=(3584, 3072)),
        radar(32632, TILE.left_m + 455_000, TILE.top_m + 3000, shape=(3072, 3072), n=1),
    ]
    files, named = {}, []
    for n, s in enumerate(scenes):
        assets = []
        for a in s.assets:
            data = cog_of(a, FILE_TILE_PX_OF.get(s.source, FILE_TILE_PX), 4 if a.band == "SCL" else None)
            url = f"{HOST}{n}-{a.band}.tif"
            files[url] = data
            assets.append(dataclasses.replace(a, href=url, size_bytes=round(len(data) / FULL_SHARE)))
        named.append(dataclasses.replace(s, assets=tuple(assets)))
    return named, files


@pytest.fixture
def served(shelf):
    scenes, files = shelf
    fetch = Counting(files)
    use_fetcher(fetch)
    yield scenes, fetch
    use_fetcher(None)


@pytest.mark.parametrize(
    ("family", "block_px", "strip_px", "part"),
    [
        pytest.param("v2", 1024, 1024, False, marks=pytest.mark.slow),
        pytest.param("v1.1-mpc+nearest", 1024, 512, False, marks=pytest.mark.slow),
        pytest.param("v1.1-mpc+nearest", 2048, 2048, False, marks=pytest.mark.slow),
        ("v2", 2048, 2048, True),
    ],
)
def test_reading_takes_what_was_foreseen_and_no_more(served, family, block_px, strip_px, part):
    scenes, fetch = served
    profile = profile_for(family, 128)
    wanted = np.zeros((TILE_PX, TILE_PX), bool)
    wanted[slice(300, 1500) if part else slice(0, 2048), slice(900, 2000) if part else slice(0, 2048)] = True
    blocks = [
        b for b in blocks_of(TILE.name, block_px)
        if wanted[b.row_px : b.row_px + block_px, b.col_px : b.col_px + block_px].any()
    ]  # fmt: skip
    windows = windows_of(blocks, strip_px, wanted)
    foreseen = traffic_of(scenes, {}, profile, TILE, windows)
    with ThreadPoolExecutor(4) as pool:
        for r0, r1, c0, c1, _ in windows.strips:
            rows, cols = range(r0, r1), range(c0, c1)
            read_stack(scenes, {ES_C1: "", PC_RTC: ""}, profile, TILE, rows, cols, pool, wanted[r0:r1, c0:c1])
    assert fetch.requests <= foreseen.requests <= 1.15 * fetch.requests
    assert fetch.requests <= foreseen.requests_at_most
    assert fetch.moved_bytes <= foreseen.moved_bytes <= 1.15 * fetch.moved_bytes
