import json

import numpy as np
import pytest
import shapely
from drawn_regions import HOLED, _polygon, _region_on, untimed
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom

from model.errors import BadInput
from transforms import grid, regions
from transforms.grid import PIXEL_M, TILE_PX
from transforms.regions import Clip, Region, clip_of, region_from_bbox, region_from_geojson, union_clips


def _centres(tile, row, col, height, width):
    return grid.lonlat_of(tile, np.arange(row, row + height)[:, None], np.arange(col, col + width)[None, :])


@untimed
@given(
    st.sampled_from(["33TWL", "01WCQ", "24XWR", "35MNM", "60KXG"]),
    st.lists(st.tuples(st.floats(-0.3, 1.3), st.floats(-0.3, 1.3)), min_size=3, max_size=7),
    st.floats(0, 1),
)
def test_the_mask_says_of_every_centre_whether_it_lies_in_the_region(name, points, share):
    region = _region_on(name, points)
    if region is None:
        return
    # A window somewhere along the first line, where there is something to tell apart.
    middle = (np.array(points[0]) * share + np.array(points[1]) * (1 - share)) * TILE_PX
    row, col = (int(n) for n in np.clip(middle - (20, 25), 0, TILE_PX - 50))
    height, width = 40, 50
    clip = clip_of(region, name)
    got = clip.mask(name, row, col, height, width) if clip else np.ones((height, width), bool)
    lon, lat = _centres(name, row, col, height, width)
    want = shapely.contains_xy(region.shape, lon, lat)
    # Coordinates are rounded to 1 cm and lines may bend by 1.2 cm: closer than that to an edge nothing is said.
    sure = shapely.distance(region.shape.boundary, shapely.points(lon, lat)) > 1e-6 / np.cos(np.radians(lat))
    np.testing.assert_array_equal(got[sure], want[sure])


@untimed
@given(
    st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.05)), min_size=3, max_size=9),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_the_mask_of_a_window_is_the_window_of_the_mask(points, row, col, height, width):
    region = _region_on("33TWL", points)
    if region is None:
        return
    clip = clip_of(region, "33TWL")
    whole = clip.mask("33TWL", 0, 0, 550, 550)
    np.testing.assert_array_equal(
        clip.mask("33TWL", row, col, height, width), whole[row : row + height, col : col + width]
    )


def test_the_mask_is_what_gdal_burns_where_lines_are_drawn_finely():
    tile = grid.tile_of("33TWL")
    region = region_from_geojson(HOLED)
    fine = shapely.segmentize(region.shape, 0.001)
    projected = transform_geom("EPSG:4326", tile.crs, json.loads(shapely.to_geojson(fine)))
    burnt = geometry_mask([projected], (TILE_PX, TILE_PX), tile.transform, invert=True)
    mask = clip_of(region, "33TWL").mask("33TWL", 0, 0, TILE_PX, TILE_PX)
    assert 0.2 < mask.mean() < 0.8
    rows, cols = np.nonzero(mask != burnt)
    centres = shapely.points(tile.left_m + (cols + 0.5) * PIXEL_M, tile.top_m - (rows + 0.5) * PIXEL_M)
    lines = shapely.geometry.shape(projected).boundary
    assert all(shapely.distance(lines, centres) < 0.02)  # by 1.2 cm lines between points 0.01 degrees apart may bend
    assert len(rows) < 100  # of about 30,000 pixels along the lines


@untimed
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), min_size=3, max_size=8))
def test_filling_follows_the_even_odd_rule(points):
    # Corners on halves of pixels: lines run exactly through centres, and still every window agrees.
    ring = np.array(points, float) / 2
    edges = np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1)
    got = regions.inside(edges, 0, 0, 12, 12)
    for row in range(12):
        for col in range(12):
            crossed = 0
            for r0, c0, r1, c1 in edges:
                if min(r0, r1) <= row + 0.5 < max(r0, r1):
                    crossed += c0 + (row + 0.5 - r0) * (c1 - c0) / (r1 - r0) <= col + 0.5 + 1e-12
            at = np.array([row + 0.5, col + 0.5])
            on_line = any(_distance(at, e[:2], e[2:]) < 1e-9 for e in edges)
            assert on_line or got[row, col] == crossed % 2
    np.testing.assert_array_equal(regions.inside(edges, 3, 5, 4, 6), got[3:7, 5:11])


def _distance(p, a, b):
    t = np.clip(np.dot(p - a, b - a) / max(np.dot(b - a, b - a), 1e-30), 0, 1)
    return np.hypot(*(p - a - t * (b - a)))


@pytest.mark.parametrize("name", ["33TWL", "01WCQ", "24XWR", "01CDH"])
def test_a_region_around_a_tile_wants_all_of_it(name):
    around = shapely.get_parts(shapely.buffer(grid.footprint(name), 0.2))
    region = region_from_geojson(json.loads(shapely.to_geojson(shapely.union_all(around))))
    assert clip_of(region, name) is None
    south = region_from_geojson(
        json.loads(shapely.to_geojson(shapely.intersection(shapely.union_all(around), _lower_half(name))))
    )
    share = clip_of(south, name).mask(name, 0, 0, TILE_PX, TILE_PX).mean()
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("name", ["33TWL", "24XWR"])
def test_every_pixel_at_the_edges_of_a_tile_is_wanted_where_the_region_goes_on_beyond_them(name):
    # A clip is cut near the tile, by lines that bend in its zone: 16 m at 84 degrees.
    lon, lat = (float(v) for v in grid.lonlat_of(name, TILE_PX / 2, TILE_PX / 2))
    hole = shapely.box(lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01)
    around = shapely.box(lon - 16, lat - 1.5, lon + 16, lat + 1.5).difference(hole)
    clip = clip_of(region_from_geojson(json.loads(shapely.to_geojson(around))), name)
    assert not clip.mask(name, TILE_PX // 2, TILE_PX // 2, 1, 1).any()
    for row, col, height, width in (
        (0, 0, 2, TILE_PX), (TILE_PX - 2, 0, 2, TILE_PX), (0, 0, TILE_PX, 2), (0, TILE_PX - 2, TILE_PX, 2),
    ):  # fmt: skip
        assert clip.mask(name, row, col, height, width).all()


def test_a_region_that_leaves_out_a_few_pixels_at_one_corner_does_not_want_all_of_a_tile():
    name, last = "33TWL", TILE_PX - 1
    # Its southern edge lies lowest in the east: beyond the ninth last pixel there, 90 m by less than 2 km are left out.
    lon, lat = (float(v) for v in grid.lonlat_of(name, last - 8, last))
    clip = clip_of(region_from_bbox(f"{lon - 2},{lat},{lon + 2},{lat + 2}"), name)
    assert clip is not None
    assert clip.mask(name, 0, last, TILE_PX, 1)[:, 0].argmin() in (last - 8, last - 7)
    assert clip.mask(name, 0, 0, TILE_PX, 1).all()


def _lower_half(name):
    middle = float(grid.lonlat_of(name, TILE_PX / 2, TILE_PX / 2)[1])
    return shapely.box(-360, -90, 360, middle)


def test_a_region_elsewhere_wants_no_pixel():
    clip = clip_of(region_from_bbox("140,45,141,46"), "33TWL")
    assert clip == Clip('{"type":"MultiPolygon","coordinates":[]}')
    assert not clip.mask("33TWL", 0, 0, 100, 100).any()


def test_polygons_far_away_do_not_change_a_clip():
    far = shapely.MultiPolygon([shapely.box(*b) for b in [(20, 45, 21, 46), (-60, -10, -50, 0), (13, 45, 14.9, 46)]])
    both = shapely.union_all([shapely.geometry.shape(HOLED), *far.geoms])
    alone = clip_of(region_from_geojson(HOLED), "33TWL")
    assert clip_of(region_from_geojson(json.loads(shapely.to_geojson(both))), "33TWL") == alone
    assert alone.digest == Clip(alone.geojson).digest and len(alone.digest) == 64


def test_another_region_has_another_digest():
    digests = {
        clip_of(region_from_bbox(b), "33TWL").digest for b in ("15.1,45.2,15.3,45.4", "15.1,45.2,15.3,45.4000001")
    }
    assert len(digests) == 2


def test_a_clip_is_geojson_that_gives_itself_back():
    clip = clip_of(region_from_bbox("179,66.7,-179.5,67"), "01WCQ")
    record = json.loads(clip.geojson)
    lons = [x for polygon in record["coordinates"] for ring in polygon for x, _ in ring]
    assert min(lons) == -180 and max(lons) == 180
    assert clip.region == region_from_geojson(record)
    assert isinstance(clip.region, Region)


@untimed
@given(
    st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.05)), min_size=3, max_size=5),
    st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.05)), min_size=3, max_size=5),
)
def test_the_union_of_clips_wants_what_either_wants(one, other):
    pair = [_region_on("33TWL", points) for points in (one, other)]
    if None in pair:
        return
    a, b = (clip_of(region, "33TWL") for region in pair)
    both = union_clips(a, b)
    assert both == union_clips(b, a) and union_clips(a, a) == a
    window = (0, 0, 550, 550)
    differs = both.mask("33TWL", *window) != (a.mask("33TWL", *window) | b.mask("33TWL", *window))
    # New corners, where lines cross, are rounded to 1 cm and take their lines along.
    centres = shapely.points(*grid.lonlat_of("33TWL", *np.nonzero(differs)))
    edge = shapely.union(a.region.shape.boundary, b.region.shape.boundary)
    assert all(shapely.distance(edge, centres) < 1e-6)


def test_a_clip_of_something_else_is_refused():
    with pytest.raises(BadInput, match="not the GeoJSON of a MultiPolygon"):
        Clip('{"type":"Point","coordinates":[1,2]}').mask("33TWL", 0, 0, 1, 1)


def test_pixel_size_of_masks_is_that_of_the_grid():
    # A square drawn 1,000 m wide around a pixel corner holds 100 by 100 centres.
    tile = grid.tile_of("33TWL")
    half = 500 / PIXEL_M
    rows, cols = np.array([-half, -half, half, half]) + 5000, np.array([-half, half, half, -half]) + 5000
    lon, lat = grid.lonlat_of(tile, rows - 0.5, cols - 0.5)
    region = region_from_geojson(_polygon(*zip(lon.tolist(), lat.tolist(), strict=True)))
    mask = clip_of(region, "33TWL").mask("33TWL", 4900, 4900, 200, 200)
    assert mask.sum() == 10_000 and mask[50:150, 50:150].all()
