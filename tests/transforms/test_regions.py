import json

import numpy as np
import pytest
import shapely
from drawn_regions import HOLED, _polygon, _region_on, _write, untimed
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms import grid, regions
from transforms.regions import region_from_bbox, region_from_geojson, tiles_of

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
