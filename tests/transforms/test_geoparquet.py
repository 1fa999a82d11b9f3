"""stac-geoparquet as a catalogue: the scenes of the same items as JSON, from the rows that are needed."""

import copy
import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from stac_items import REAL, TILE, optical, radar, real_items

from model.errors import BadInput
from model.profile import CDSE_L2A, ES_C1, ES_L2A, PC_L2A, PC_RTC
from transforms import grid
from transforms.catalogs import geoparquet
from transforms.catalogs.items import record_of
from transforms.catalogs.search import open_catalog
from transforms.catalogs.selection import select
from transforms.inventory import write_inventory
from transforms.periods import period_of

real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real-data")


def row_of(item, unit="us", boxes="struct"):
    """An item as stac-geoparquet lays it out: properties as columns, geometry as WKB, bbox as a struct."""
    said = dict(item["properties"])
    for key in [k for k in said if k.endswith("datetime") or k in ("created", "updated")]:
        said[key] = said[key] and dt.datetime.fromisoformat(said[key])
    row = {k: item.get(k) for k in ("type", "stac_version", "id", "collection", "links", "assets")} | said
    shape = item.get("geometry") and shapely.geometry.shape(item["geometry"])
    row["geometry"] = shape and shapely.to_wkb(shape)
    if boxes == "struct":
        row["bbox"] = dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True))
    elif boxes == "list":
        row["bbox"] = list(item["bbox"])
    return row


def write(path, items, group_rows=1000, unit="us", **forms):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row_of(i, **forms) for i in copy.deepcopy(items)]
    names = list(dict.fromkeys(k for row in rows for k in row))
    table = pa.Table.from_pylist([{n: row.get(n) for n in names} for row in rows])
    for n, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            kind = pa.timestamp(unit, "UTC")
            table = table.set_column(n, field.name, table.column(n).cast(kind))
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def scenes(catalog, tile=TILE, period="2024"):
    found = catalog.items(tile, period_of(period))
    return select([r for f in found if (r := record_of(f, tile, catalog.root)) is not None])


def of(kind, n, tile="33TWL", day="2024-05-06", **said):
    when = f"{day}T10:{n % 60:02d}:00Z"
    if kind == PC_RTC:
        return apart(radar(id=f"r{n}", **{"datetime": when, **said}), n)
    said = {"earthsearch:boa_offset_applied": True, "processing:version": "05.11", "s2:datatake_id": f"d{n}", **said}
    return apart(optical(kind, tile, f"s{n}", datetime=when, **said), n)


def apart(item, n):
    """With files of its own, away from the catalogue."""
    for asset in item["assets"].values():
        asset["href"] = f"https://h/{n}/{asset['href'][2:]}"
    return item


ITEMS = [
    of(ES_C1, 0),
    of(ES_C1, 1, "33TWM"),
    of(ES_C1, 2, "33TXL"),
    of(ES_C1, 3, day="2023-12-31"),
    of(ES_C1, 4, day="2024-01-01"),
    of(ES_C1, 5, day="2024-12-31"),
    of(ES_C1, 6, day="2025-01-01"),
    of(PC_RTC, 7),
    apart(radar(id="far", left_m=200_000, top_m=6_000_000), 8),
]


@pytest.mark.parametrize("source", [ES_C1, ES_L2A, PC_L2A, CDSE_L2A, PC_RTC])
@pytest.mark.parametrize("unit", ["us", "ms", "ns"])
@pytest.mark.parametrize("boxes", ["struct", "list", "none"])
def test_items_of_every_collection_become_the_scenes_that_they_are_as_json(tmp_path, source, unit, boxes):
    items = [of(source, n) for n in range(3)]
    (tmp_path / "json").mkdir()
    (tmp_path / "json/items.json").write_text(json.dumps(items))
    write(tmp_path / "a.parquet", items, unit=unit, boxes=boxes)
    provider = source.partition("@")[2]
    meant = scenes(open_catalog(str(tmp_path / "json"), provider))
    assert len(meant) == 3
    assert all(s.kept for s in meant)
    assert scenes(open_catalog(str(tmp_path / "a.parquet"), provider)) == meant
    assert scenes(open_catalog(str(tmp_path / "a.parquet"))) == meant, "the assets tell whose they are"


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(range(len(ITEMS))),
    st.integers(1, 9),
    st.sampled_from(["33TWL", "33TWM", "33TXL", "33UVP"]),
    st.sampled_from(["2024", "2023", "2023-12-15/2024-12-14"]),
    st.integers(1, 3),
)
def test_neither_sorting_nor_groups_nor_files_change_what_is_found(
    tmp_path_factory, order, group_rows, tile, period, files
):
    folder = tmp_path_factory.mktemp("cat")
    (folder / "json").mkdir()
    (folder / "json/items.json").write_text(json.dumps(ITEMS))
    shuffled = [ITEMS[n] for n in order]
    for n in range(files):
        if part := shuffled[n::files]:
            write(folder / f"parquet/year=2024/{n}.parquet", part, group_rows)
    where = grid.tile_of(tile)
    meant = scenes(open_catalog(str(folder / "json")), where, period)
    assert scenes(open_catalog(str(folder / "parquet")), where, period) == meant


@real
@pytest.mark.parametrize("name", [path.name for path in sorted(REAL.glob("*json")) if "antimeridian" not in path.name])
def test_real_items_become_the_same_scenes_through_parquet(tmp_path, name):
    items = real_items(name)
    write(tmp_path / "a.parquet", items, group_rows=3)
    (tmp_path / "json").mkdir()
    (tmp_path / "json/a.json").write_text(json.dumps(items))
    boxes = [i["bbox"] for i in items]
    middles = {t for w, s, e, n in boxes for t in grid.tiles_at((w + e) / 2, (s + n) / 2)}
    named = {i["properties"].get("s2:mgrs_tile") or i["properties"].get("grid:code", "")[5:] for i in items} - {""}
    tiles = sorted(middles | {grid.tile_of(n) for n in named})
    years = sorted({i["properties"]["datetime"][:4] for i in items})
    got = {}
    for form in ("a.parquet", "json"):
        catalog = open_catalog(str(tmp_path / form))
        got[form] = [s for t in tiles for y in years for s in scenes(catalog, t, y)]
    assert got["a.parquet"] == got["json"]
    assert {s.id for s in got["json"]} == {i["id"] for i in items}


def test_relative_hrefs_start_from_the_parquet_files_folder(tmp_path):
    item = of(PC_L2A, 0)
    for band, asset in item["assets"].items():
        asset["href"] = f"./deep/{band}.tif"
    write(tmp_path / "cat/a.parquet", [item])
    catalog = open_catalog(str(tmp_path / "cat"))
    (scene,) = scenes(catalog)
    assert catalog.root == str(tmp_path / "cat")
    assert scene.asset("B04").href == "deep/B04.tif"


@pytest.mark.parametrize("tile", ["01WCQ", "60VXH"])
def test_items_across_the_antimeridian_are_not_lost_to_statistics(tmp_path, tile):
    where = grid.tile_of(tile)
    west, south, east, north = grid.bbox_of(tile)
    items = []
    for n, (w, e) in enumerate([(west, east), (east, west), (-180.0, 180.0)]):
        items.append(of(ES_C1, n, tile) | {"bbox": [w, south, e, north], "geometry": None})
    write(tmp_path / "a.parquet", [of(ES_C1, 9), *items], group_rows=1)
    assert len(scenes(open_catalog(str(tmp_path / "a.parquet")), where)) == 3


# --- what is read


def offsets_of(path, group):
    """(first byte, one past the last) of a row group."""
    chunks = [pq.read_metadata(path).row_group(group).column(n) for n in range(pq.read_metadata(path).num_columns)]
    first = min(c.dictionary_page_offset or c.data_page_offset for c in chunks)
    return first, first + sum(c.total_compressed_size for c in chunks)


@pytest.mark.parametrize(
    "far",
    [
        of(ES_C1, 1, "31TGL"),  # another place
        of(ES_C1, 1, day="2021-05-06"),  # another year
        of(ES_C1, 1, "33TWM"),  # a neighbour, whose box meets this one: its name tells
    ],
)
def test_row_groups_that_cannot_hold_the_tile_are_never_read(tmp_path, far):
    path = write(tmp_path / "a.parquet", [of(ES_C1, 0), far], group_rows=1)
    data = bytearray(path.read_bytes())
    first, last = offsets_of(path, 1)
    data[first:last] = b"\xff" * (last - first)
    path.write_bytes(data)
    catalog = open_catalog(str(path))
    assert [s.id for s in scenes(catalog)] == ["s0"]
    tile = far["properties"]["grid:code"].removeprefix("MGRS-")
    with pytest.raises(BadInput, match=r"a\.parquet: cannot be read"):
        scenes(catalog, grid.tile_of(tile), "2021" if "2021" in far["properties"]["datetime"] else "2024")


def test_whole_items_are_made_of_the_tiles_rows_alone_and_never_of_links(tmp_path, monkeypatch):
    items = [of(ES_C1, n, "33TWL" if n % 7 == 0 else "33TWM") for n in range(60)]
    for item in items:
        item["links"] = [{"rel": "self", "href": "https://h/x"}]
        item["assets"] |= {"thumbnail": {"href": "https://h/t.jpg"}, "red-jp2": {"href": "s3://h/r.jp2"}}
    write(tmp_path / "a.parquet", items)
    monkeypatch.setattr(geoparquet, "BATCH_ROWS", 8)
    made = []
    whole = geoparquet._item
    monkeypatch.setattr(geoparquet, "_item", lambda values: made.append(values) or whole(values))
    assert len(scenes(open_catalog(str(tmp_path / "a.parquet")))) == 9
    full = [v for v in made if "assets" in v]
    assert len(full) == 9
    assert all(not {"thumbnail", "red-jp2"} & set(v["assets"]) and "links" not in v for v in full)


def test_places_of_rows_are_remembered_up_to_a_limit_and_the_result_stays(tmp_path, monkeypatch):
    items = [of(ES_C1, n, day=f"2024-05-{n + 1:02d}") for n in range(12)]
    write(tmp_path / "a.parquet", items, group_rows=2)
    meant = scenes(open_catalog(str(tmp_path / "a.parquet")))
    monkeypatch.setattr(geoparquet, "INDEX_ROWS", 4)
    catalog = open_catalog(str(tmp_path / "a.parquet"))
    for _ in range(2):
        assert scenes(catalog) == meant
    assert sum(g.rows for g in catalog._index) <= 4
    assert catalog.ignored == {}


# --- what it may be


def test_what_is_passed_over_is_counted_once(tmp_path):
    items = [of(ES_C1, 0), {**of(ES_C1, 1), "collection": "landsat-c2-l2"}, of(PC_RTC, 2)]
    no_tile = of(ES_C1, 3, **{"grid:code": None})
    no_box = {**of(PC_RTC, 4), "bbox": [None] * 4, "geometry": None}
    write(tmp_path / "a.parquet", [*items, no_tile, no_box])
    catalog = open_catalog(str(tmp_path / "a.parquet"))
    for _ in range(2):
        assert len(scenes(catalog)) == 2
    assert catalog.ignored == {
        "collection landsat-c2-l2": 1,
        "optical items without a tile": 1,
        "radar items without bbox and geometry": 1,
    }
    catalog = open_catalog(str(tmp_path / "a.parquet"), "earth-search")
    assert len(scenes(catalog)) == 1
    assert catalog.ignored["collection sentinel-1-rtc of earth-search"] == 2


def test_its_span_is_that_of_its_items(tmp_path):
    write(tmp_path / "a.parquet", ITEMS, group_rows=2)
    assert open_catalog(str(tmp_path / "a.parquet")).span() == "2023-12-31..2025-01-01"


def test_items_that_may_be_of_two_providers_ask_for_as(tmp_path):
    item = of(PC_L2A, 0)
    item["assets"] = {"other": {"href": "https://h/a.tif"}}
    write(tmp_path / "a.parquet", [item])
    with pytest.raises(BadInput, match="--as earth-search or --as planetary-computer or --as cdse"):
        scenes(open_catalog(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/etc/passwd", "../../secret.tif"])
def test_hrefs_out_of_its_folder_are_refused(tmp_path, href):
    item = of(PC_L2A, 0)
    item["assets"]["B04"]["href"] = href
    write(tmp_path / "a.parquet", [item])
    with pytest.raises(BadInput, match="item s0: href"):
        scenes(open_catalog(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("harm", ["no SCL", "no href", "wrong shape"])
def test_items_that_lack_something_are_dropped_with_the_reason(tmp_path, harm):
    bad = of(PC_L2A, 1)
    if harm == "no SCL":
        del bad["assets"]["SCL"]
    elif harm == "no href":
        del bad["assets"]["SCL"]["href"]
    else:
        bad["assets"]["SCL"]["proj:shape"] = [5491, 5490]
    write(tmp_path / "a.parquet", [of(PC_L2A, 0), bad])
    words = "wrong grid: SCL" if harm == "wrong shape" else "no band SCL"
    got = scenes(open_catalog(str(tmp_path / "a.parquet")))
    assert {s.id: s.dropped_reason[: len(words)] for s in got} == {"s0": "", "s1": words}


def test_a_file_that_is_no_parquet_or_cut_short_is_refused_by_name(tmp_path):
    whole = write(tmp_path / "a.parquet", ITEMS).read_bytes()
    for data in (b"", b"PAR1", whole[:-20], b"{}"):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(BadInput, match=r"a\.parquet: not a Parquet file, or cut short"):
            open_catalog(str(tmp_path / "a.parquet"))


def test_other_parquet_is_refused_or_in_a_folder_counted(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match="it has no columns assets, collection, datetime, id"):
        open_catalog(str(tmp_path / "b.parquet"))
    with pytest.raises(BadInput, match="hold no STAC items"):
        open_catalog(str(tmp_path))
    write(tmp_path / "a.parquet", ITEMS)
    catalog = open_catalog(str(tmp_path))
    assert len(scenes(catalog)) == 4
    assert catalog.ignored == {"Parquet files without STAC items": 1}


def test_an_inventory_is_told_apart_from_a_catalogue(tmp_path):
    write_inventory(tmp_path / "i.parquet", period_of("2024"), "2025-01-01T00:00:00Z", {"33TWL": []}, [])
    with pytest.raises(BadInput, match="this is an inventory already; give it to embed"):
        open_catalog(str(tmp_path / "i.parquet"))


def test_parquet_beside_json_items_is_left_alone(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps([of(ES_C1, 0)]))
    write(tmp_path / "a.parquet", [of(ES_C1, 1)])
    assert [s.id for s in scenes(open_catalog(str(tmp_path)))] == ["s0"]
    (tmp_path / "items.json").rename(tmp_path / "collection.json")
    assert [s.id for s in scenes(open_catalog(str(tmp_path)))] == ["s1"]


def test_parquet_on_the_web_is_asked_for_as_a_file():
    with pytest.raises(BadInput, match="download it") as e:
        open_catalog("https://h/items.parquet?sig=word")
    assert "word" not in str(e.value)


def test_every_file_of_a_folder_is_found_whatever_its_depth(tmp_path):
    for n, name in enumerate(("a.parquet", "year=2024/b.parquet", "year=2024/month=5/c.geoparquet")):
        write(tmp_path / name, [of(ES_C1, n)])
    assert sorted(s.id for s in scenes(open_catalog(str(Path(tmp_path))))) == ["s0", "s1", "s2"]
