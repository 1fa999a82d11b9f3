import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom

from model.errors import BadInput
from transforms import grid, regions
from transforms.grid import PIXEL_M, TILE_PX
from transforms.regions import Clip, Region, clip_of, region_from_bbox, region_from_geojson, tiles_of, union_clips

untimed = settings(deadline=None, max_examples=30)
HOLED = {
    "type": "Polygon",
    "coordinates": [
        [[15.1, 45.2], [16.1, 45.3], [15.9, 45.9], [15.2, 45.8], [15.1, 45.2]],
        [[15.4, 45.4], [15.8, 45.4], [15.6, 45.7], [15.4, 45.4]],
    ],
}
FIJI_ACROSS = {"type": "Polygon", "coordinates": [[[179, -18], [-179, -18], [-179, -17], [179, -17], [179, -18]]]}


@pytest.fixture(scope="module")
def middles():
    """Every tile and the longitude and latitude of its middle."""
    tiles = sorted(grid.all_tiles(), key=lambda t: t.epsg)
    lonlats = []
    for epsg in sorted({t.epsg for t in tiles}):
        corners = np.array([t.bounds_m[:2] for t in tiles if t.epsg == epsg]) + grid.SIDE_M / 2
        lonlats.append(np.stack(grid.to_lonlat(*corners.T, f"EPSG:{epsg}"), axis=1))
    return list(zip(tiles, np.concatenate(lonlats), strict=True))


def _slow_tiles(shape, middles):
    """The tiles whose footprint shares area with a shape, one by one where their middle is not too far away."""
    west, south, east, north = shape.bounds
    near = []
    for tile, (lon, lat) in middles:
        reach = 1.1 / np.cos(np.radians(min(abs(lat) + 1, 88)))
        if west - reach < lon < east + reach and south - 1.1 < lat < north + 1.1:
            near.append(tile)
    return sorted(t.name for t in near if shapely.intersection(grid.footprint(t), shape).area > 0)


def _centres(tile, row, col, height, width):
    return grid.lonlat_of(tile, np.arange(row, row + height)[:, None], np.arange(col, col + width)[None, :])


def _write(tmp_path, record, name="region.geojson"):
    path = tmp_path / name
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


# Tiles of a region


@pytest.mark.parametrize(
    "bbox", ["13.4,45.4,16.6,46.9", "5.1,60.2,9.3,62.1", "8,77,22,80", "-70.5,-55.2,-65,-53", "15.2,45.5,15.21,45.51"]
)
def test_the_tiles_of_a_bbox_are_those_that_share_area_with_it(bbox, middles):
    slow = _slow_tiles(shapely.box(*map(float, bbox.split(","))), middles)
    assert slow and tiles_of(region_from_bbox(bbox)) == slow


def test_a_slanted_polygon_leaves_out_tiles_that_only_its_box_touches():
    triangle = shapely.Polygon([(10, 45), (17, 45), (17, 49)])
    inside = tiles_of(region_from_geojson(json.loads(shapely.to_geojson(triangle))))
    boxed = tiles_of(region_from_bbox("10,45,17,49"))
    assert set(inside) < set(boxed)
    assert all(not grid.footprint(name).intersects(triangle) for name in set(boxed) - set(inside))


def test_a_tile_that_lies_in_a_hole_is_left_out():
    around = shapely.box(10, 42, 20, 50).difference(grid.footprint("33TWL").buffer(0.05))
    names = tiles_of(region_from_geojson(json.loads(shapely.to_geojson(around))))
    assert "33TWL" not in names and {"33TWM", "33TXL", "33TVL"} <= set(names)


def test_every_way_across_the_antimeridian_gives_the_same_region_and_tiles(middles):
    west = [[179, -18], [180, -18], [180, -17], [179, -17], [179, -18]]
    east = [[-180, -18], [-179, -18], [-179, -17], [-180, -17], [-180, -18]]
    beyond = [[179, -18], [181, -18], [181, -17], [179, -17], [179, -18]]
    ways = [
        region_from_bbox("179,-18,-179,-17"),
        region_from_geojson(FIJI_ACROSS),
        region_from_geojson({"type": "MultiPolygon", "coordinates": [[west], [east]]}),
        region_from_geojson({"type": "MultiPolygon", "coordinates": [[east], [west]]}),
        region_from_geojson({"type": "Polygon", "coordinates": [beyond]}),
        region_from_geojson({"type": "Polygon", "coordinates": [[[x - 360, y] for x, y in beyond]]}),
    ]
    assert all(way == ways[0] for way in ways)
    names = tiles_of(ways[0])
    halves = [shapely.box(179, -18, 180, -17), shapely.box(-180, -18, -179, -17)]
    assert names == sorted({name for half in halves for name in _slow_tiles(half, middles)})
    assert {name[:2] for name in names} == {"01", "60"}


def test_a_hole_that_crosses_the_antimeridian_stays_a_hole():
    hole = [[179.5, -17.8], [-179.5, -17.8], [-179.5, -17.2], [179.5, -17.2], [179.5, -17.8]]
    for turned in (hole, [[x - 360 if x > 0 else x, y] for x, y in hole]):
        region = region_from_geojson({"type": "Polygon", "coordinates": [*FIJI_ACROSS["coordinates"], turned]})
        assert region.shape.area == pytest.approx(2 - 0.6)
        assert not region.shape.intersects(shapely.Point(-179.9, -17.5))


def test_the_whole_earth_has_all_tiles():
    assert tiles_of(region_from_bbox("-180,-90,180,90")) == list(grid.all_names())
    world = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]
    assert region_from_geojson({"type": "Polygon", "coordinates": [world]}) == region_from_bbox("-180,-90,180,90")


def test_geometry_feature_and_collections_say_the_same(tmp_path):
    feature = {"type": "Feature", "properties": {}, "geometry": HOLED}
    unlocated = {"type": "Feature", "properties": None, "geometry": None}
    for record in (
        HOLED,
        feature,
        {"type": "FeatureCollection", "features": [unlocated, feature]},
        {"type": "GeometryCollection", "geometries": [HOLED, HOLED]},
        {"type": "Polygon", "coordinates": [[[*xy, 300.0] for xy in ring] for ring in HOLED["coordinates"]]},
        {**HOLED, "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}},
    ):
        assert regions.region_from_file(_write(tmp_path, record)) == region_from_geojson(HOLED)
    marked = "\ufeff" + json.dumps(HOLED)
    assert regions.region_from_file(_write(tmp_path, marked)) == region_from_geojson(HOLED)


def test_where_a_ring_begins_and_how_it_runs_does_not_matter():
    outer, hole = HOLED["coordinates"]
    turned = {"type": "Polygon", "coordinates": [[*outer[2:], *outer[1:3]][::-1], hole[::-1]]}
    assert region_from_geojson(turned) == region_from_geojson(HOLED)


@untimed
@given(
    st.lists(st.floats(-180, 180).map(lambda x: round(x, 3)), min_size=2, max_size=2, unique=True),
    st.lists(st.floats(-90, 90).map(lambda x: round(x, 3)), min_size=2, max_size=2, unique=True),
)
def test_the_geojson_of_a_bbox_however_wide_gives_the_same_region(lons, lats):
    south, north = sorted(lats)
    region = region_from_bbox(f"{lons[0]},{south},{lons[1]},{north}")
    width = (lons[1] - lons[0]) % 360 or 360
    assert region.shape.area == pytest.approx(width * (north - south), abs=1e-4)
    assert region_from_geojson(json.loads(shapely.to_geojson(region.shape))) == region


@untimed
@given(
    st.sampled_from(["33TWL", "01WCQ", "24XWR", "60KXG"]),
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=9),
)
def test_the_geojson_of_a_polygon_gives_the_same_region(name, points):
    # At 80 N nine tiles are a quarter of the globe: rings that go around the pole are another test's.
    region = _region_on(name, points if name != "24XWR" else np.array(points) / 9)
    if region is not None:
        assert region_from_geojson(json.loads(shapely.to_geojson(region.shape))) == region


# Refusals


@pytest.mark.parametrize(
    ("bbox", "cure"),
    [
        ("1,2,3", "four numbers W,S,E,N"),
        ("1,2,3,4,5", "four numbers W,S,E,N"),
        ("a,b,c,d", "four numbers W,S,E,N"),
        ("nan,0,1,1", "four numbers W,S,E,N"),
        ("45,100,46,101", "longitude first"),
        ("170,-20,190,-10", "across the antimeridian W is greater than E"),
        ("1,5,3,4", "south 5 is not below north 4"),
        ("1,2,1,3", "west and east are the same"),
    ],
)
def test_a_wrong_bbox_is_refused_with_its_cure(bbox, cure):
    with pytest.raises(BadInput, match=f"^bbox {bbox}: .*{cure}"):
        region_from_bbox(bbox)


def _polygon(*points):
    return {"type": "Polygon", "coordinates": [[*map(list, points), list(points[0])]]}


@pytest.mark.parametrize(
    ("record", "cure"),
    [
        ("not json", r"not GeoJSON .*ogr2ogr"),
        ([1], "not GeoJSON: type None"),
        ({"type": "Topology"}, "type 'Topology'"),
        ({"type": "Polygon"}, r"a Polygon that is not as RFC 7946 has it \(KeyError: 'coordinates'\)"),
        ({"type": "Polygon", "coordinates": 5}, "a Polygon that is not as RFC 7946"),
        ({"type": "Polygon", "coordinates": [["a", "b", "c", "d"]]}, r"list of four or more \[longitude, latitude\]"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3]]]}, r"list of four or more \[longitude, latitude\]"),
        ({"type": "FeatureCollection", "features": []}, "no area; give at least one polygon"),
        ({"type": "Polygon", "coordinates": []}, "no area"),
        (_polygon((1, 1), (2, 2), (3, 3)), "no area"),
        ({"type": "Point", "coordinates": [1, 2]}, "a Point, which has no area; give polygons"),
        ({"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 2], [2, 3]]}}, "a LineString"),
        (_polygon((45, 100), (46, 100), (46, 101)), "point 46, 101 .*the order is longitude, latitude"),
        (_polygon((5e5, 5e6), (5.1e5, 5e6), (5e5, 5.1e6)), "projected coordinates: ogr2ogr -t_srs EPSG:4326"),
        ({**HOLED, "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}}, "32633.*ogr2ogr"),
        (_polygon((-100, 0), (100, 0), (100, 10), (-100, 10)), "from longitude -100 to 100 may go either way"),
        (_polygon((0, 80), (90, 80), (180, 80), (-90, 80)), "goes once around a pole"),
    ],
)
def test_a_wrong_region_file_is_refused_with_its_cure(tmp_path, record, cure):
    path = _write(tmp_path, record)
    with pytest.raises(BadInput, match=f"region .*region.geojson: .*{cure}"):
        regions.region_from_file(path)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere.geojson: no such file"):
        regions.region_from_file(tmp_path / "nowhere.geojson")
    with pytest.raises(BadInput, match="not a readable text file"):
        regions.region_from_file(tmp_path)
    (tmp_path / "region.shp").write_bytes(b"\x00\x00\x27\x0a\xff\xfe")
    with pytest.raises(BadInput, match=r"region.shp: not a readable text file"):
        regions.region_from_file(tmp_path / "region.shp")


def test_lists_are_sorted_and_freed_of_doubles_and_comments(tmp_path):
    assert regions.names_from_list("33TXL, 33TWL,33TXL") == ["33TWL", "33TXL"]
    path = _write(tmp_path, "# all of it\n33TXL  # east\n\n33TWL,01CCV\n", "tiles.txt")
    assert regions.names_from_list(f"@{path}") == ["01CCV", "33TWL", "33TXL"]


def test_lists_without_tiles_or_with_wrong_ones_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no tile names in it"):
        regions.names_from_list(" , ")
    with pytest.raises(BadInput, match=r"@.*tiles.txt: no tile names in it"):
        regions.names_from_list(f"@{_write(tmp_path, '# none', 'tiles.txt')}")
    with pytest.raises(BadInput, match=r"tiles.lst: no such file"):
        regions.names_from_list(f"@{tmp_path / 'tiles.lst'}")
    with pytest.raises(BadInput, match=r"'33TWO'.*is 33TWN; tile '33twl'.*is 33TWL$"):
        regions.names_from_list("33twl,33TWO,33TXL")
    with pytest.raises(BadInput, match=r"; and 2 more$"):
        regions.names_from_list("33TWO,33TWI,33twl,33txl,x,y,z")


# Clips


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


def _region_on(name, points):
    """A region from points in shares of a tile's side, or None where they enclose nothing."""
    rows, cols = np.array(points).T * TILE_PX
    lon, lat = grid.lonlat_of(name, rows, cols)
    ring = [[float(x), float(y)] for x, y in zip(lon, lat, strict=True)]
    try:
        return region_from_geojson(_polygon(*ring))
    except BadInput as e:
        assert "no area" in str(e)
        return None


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
