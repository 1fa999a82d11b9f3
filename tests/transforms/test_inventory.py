import dataclasses
import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.profile import OPERA_RTC, PC_RTC
from transforms import inventory as inv
from transforms.catalogs.selection import in_order
from transforms.inventory import (
    InventoryWriter,
    SourceRecord,
    frozen_digest,
    read_header,
    read_tile,
    tile_digest,
    write_inventory,
)
from transforms.periods import period_of
from transforms.scene_rows import SCHEMA, scenes_of, table_of
from transforms.scenes import S1, S2, Asset, Scene

VERSION_1 = Path(__file__).parent / "golden" / "inventory_v1.parquet"
PERIOD = period_of("2024")
FROZEN = "2025-01-02T03:04:05.000000Z"
SOURCES = [SourceRecord("s2@p", "/cat", "cat"), SourceRecord("s1@p", "https://h/v1", "https://h/v1")]

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
metres = st.floats(-1e7, 1e7, allow_nan=False)
assets = st.builds(
    Asset,
    band=st.sampled_from(["B02", "SCL", "VV"]),
    href=texts,
    epsg=st.integers(32601, 32760),
    transform=st.tuples(metres, metres, metres, metres, metres, metres),
    height_px=st.integers(1, 30_000),
    width_px=st.integers(1, 30_000),
    size_bytes=st.none() | st.integers(0, 2**40),
    checksum=texts,
)
scenes = st.builds(
    Scene,
    tile=st.just("33TWL"),
    sensor=st.sampled_from([S1, S2]),
    source=st.sampled_from(["s2@p", "s1@p"]),
    id=texts,
    datetime=st.datetimes(dt.datetime(2015, 1, 1), dt.datetime(2100, 1, 1)).map(
        lambda t: t.isoformat(timespec="microseconds") + "Z"
    ),
    order=st.integers(0, 200),
    orbit=st.sampled_from(["ascending", "descending", ""]),
    relative_orbit=st.none() | st.integers(1, 175),
    platform=texts,
    baseline=st.sampled_from(["", "05.10"]),
    cloud_cover=st.none() | st.floats(0, 100),
    datatake=texts,
    generated=texts,
    offset_dn=st.sampled_from([0, 1000]),
    offset_reason=texts,
    kept=st.booleans(),
    dropped_reason=texts,
    assets=st.lists(assets, max_size=3).map(tuple),
)
listings = st.lists(scenes, max_size=6, unique_by=lambda s: (s.source, s.id))


def a_scene(id="a", tile="33TWL", **said):
    asset = Asset(
        "B02", f"items/{id}.tif", 32633, (10.0, 0.0, 499_980.0, 0.0, -10.0, 5_100_000.0), 10_980, 10_980, 7, ""
    )
    fields = {
        "tile": tile,
        "sensor": S2,
        "source": "s2@p",
        "id": id,
        "datetime": "2024-05-06T10:00:00.123456Z",
        "order": 0,
        "orbit": "",
        "relative_orbit": 122,
        "platform": "sentinel-2a",
        "baseline": "05.10",
        "cloud_cover": 10.5,
        "datatake": "GS2A",
        "generated": "",
        "offset_dn": 1000,
        "offset_reason": "by baseline",
        "kept": True,
        "dropped_reason": "",
        "assets": (asset,),
    }
    return Scene(**fields | said)


def small(path, **tiles):
    return write_inventory(path, PERIOD, FROZEN, tiles or {"33TWL": [a_scene()]}, SOURCES)


@settings(deadline=None)
@given(listings)
def test_a_table_gives_back_the_scenes_it_was_made_of(rows):
    table = table_of(rows)
    assert table.schema == SCHEMA and scenes_of(table) == rows


def test_the_columns_of_version_1_are_the_fields_of_a_scene():
    assert SCHEMA.names == [f.name for f in dataclasses.fields(Scene)]
    struct = SCHEMA.field("assets").type.value_type
    assert [struct.field(i).name for i in range(struct.num_fields)] == [f.name for f in dataclasses.fields(Asset)]


@settings(max_examples=30, deadline=None)
@given(listings, st.randoms(use_true_random=False))
def test_the_same_scenes_in_any_order_make_the_same_file(tmp_path_factory, rows, random):
    folder = tmp_path_factory.mktemp("inventory")
    rows = in_order(rows)
    shuffled = random.sample(rows, len(rows))
    a = small(folder / "a.parquet", **{"33TWL": rows, "33TWM": []})
    b = small(folder / "b.parquet", **{"33TWM": [], "33TWL": shuffled})
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    assert dataclasses.replace(a, path="") == dataclasses.replace(b, path="")
    assert tile_digest(rows) == tile_digest(shuffled) == a.counts["33TWL"].digest
    assert read_tile(folder / "a.parquet", "33TWL") == rows and read_header(folder / "a.parquet") == a


@settings(deadline=None)
@given(listings)
def test_a_tiles_digest_is_that_of_its_kept_scenes(rows):
    kept = [s for s in rows if s.kept]
    renumbered = [dataclasses.replace(s, order=s.order + 1, cloud_cover=None, offset_reason="") for s in kept]
    assert tile_digest(rows) == tile_digest(kept) == tile_digest(renumbered)


OTHER = Asset("B03", "x.tif", 32633, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"source": "s1@p"},
        {"datetime": "2024-05-06T10:00:00.123457Z"},
        {"orbit": "ascending"},
        {"baseline": "05.11"},
        {"generated": "2024"},
        {"offset_dn": 0},
        {"kept": False},
        {"assets": (OTHER,)},
        {"assets": (dataclasses.replace(a_scene().assets[0], checksum="new"),)},
        {"assets": (dataclasses.replace(a_scene().assets[0], width_px=1),)},
    ],
)
def test_whatever_can_change_pixels_changes_both_digests(tmp_path, change):
    other = a_scene(**change)
    assert tile_digest([a_scene()]) != tile_digest([other])
    a = small(tmp_path / "a.parquet")
    b = small(tmp_path / "b.parquet", **{"33TWL": [other]})
    assert a.digest != b.digest


def test_the_inventorys_digest_is_over_rows_tiles_and_period_and_not_over_roots_and_clocks(tmp_path):
    a = small(tmp_path / "a.parquet")
    moved = [SourceRecord("s2@p", "/elsewhere", "elsewhere")]
    tiles = {"33TWL": [a_scene()]}
    assert write_inventory(tmp_path / "b.parquet", PERIOD, "2026", tiles, moved).digest == a.digest
    later = period_of("2024-01-02/2025-01-01")
    others = [
        write_inventory(tmp_path / "b.parquet", later, FROZEN, tiles, SOURCES),
        small(tmp_path / "b.parquet", **tiles, **{"33TWM": []}),
        small(tmp_path / "b.parquet", **{"33TWL": [a_scene(), a_scene("b", kept=False)]}),
        small(tmp_path / "b.parquet", **{"33TWL": [a_scene(offset_reason="otherwise")]}),
    ]
    assert len({a.digest, *(o.digest for o in others)}) == 5


def test_a_header_says_what_there_is_without_reading_a_row(tmp_path, monkeypatch):
    rows = [
        a_scene("a"),
        a_scene("b", kept=False),
        a_scene("c", sensor=S1, orbit="ascending"),
        a_scene("d", sensor=S1, orbit="descending"),
        a_scene("e", sensor=S1, orbit="descending"),
    ]
    written = small(tmp_path / "i.parquet", **{"33TWL": rows, "33TWM": [], "33TWN": [a_scene("n", "33TWN")]})
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    inv._footer.cache_clear()
    got = read_header(tmp_path / "i.parquet")
    assert got == written
    assert got.tiles == ("33TWL", "33TWM", "33TWN") and got.period == PERIOD and got.frozen == FROZEN
    one = got.counts["33TWL"]
    assert (one.s2, one.s1_ascending, one.s1_descending, one.dropped, one.rows) == (1, 1, 2, 1, 5)
    assert got.roots == {"s2@p": "/cat", "s1@p": "https://h/v1"} and got.overlap == "full"


def test_a_row_group_holds_so_many_tiles_and_a_tile_s_is_all_that_is_read_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(inv, "TILES_A_GROUP", 2)
    names = ("33TWK", "33TWL", "33TWN")
    tiles = {name: [a_scene(f"{name}{n}", name) for n in range(3)] for name in names}
    small(tmp_path / "i.parquet", **tiles, **{"33TWM": []})
    file = pq.ParquetFile(tmp_path / "i.parquet")
    assert file.num_row_groups == 2
    assert [set(file.read_row_group(g)["tile"].to_pylist()) for g in range(2)] == [{"33TWK", "33TWL"}, {"33TWN"}]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    read, real = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or real(self, i))
    assert read_tile(tmp_path / "i.parquet", "33TWN") == tiles["33TWN"] and read == [1]
    assert read_tile(tmp_path / "i.parquet", "33TWM") == [] and read == [1]
    assert read_tile(tmp_path / "i.parquet", "33TWL") == tiles["33TWL"] and read == [1, 0]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_every_tile_is_found_again_however_many_there_are(tmp_path, count):
    names = [f"33TW{chr(65 + n // 8)}{n % 8}" for n in range(count)]
    tiles = {name: [] if n % 7 == 3 else [a_scene(name, name)] for n, name in enumerate(names)}
    small(tmp_path / "i.parquet", **tiles)
    assert {name: read_tile(tmp_path / "i.parquet", name) for name in names} == tiles


def test_a_file_of_version_1_reads_as_it_did_and_has_the_digest_of_a_new_one(tmp_path):
    """Written by the release before row groups held several tiles."""
    tiles = {
        "33TWL": [a_scene("a"), a_scene("b", kept=False), a_scene("c", sensor=S1, orbit="ascending")],
        "33TWM": [],
        "33TWN": [a_scene("n", "33TWN")],
    }
    assert pq.read_metadata(VERSION_1).num_row_groups == 2
    now = small(tmp_path / "i.parquet", **tiles)
    then = read_header(VERSION_1)
    assert (then.digest, then.counts, then.tiles) == (now.digest, now.counts, now.tiles)
    for tile in tiles:
        assert read_tile(VERSION_1, tile) == read_tile(tmp_path / "i.parquet", tile)


def test_rows_are_sorted_by_tile_sensor_and_order(tmp_path):
    rows = [a_scene(f"{s}{n}", sensor=s, order=n) for s in (S2, S1) for n in (2, 0, 1)]
    small(tmp_path / "i.parquet", **{"33TWL": rows})
    assert [s.id for s in read_tile(tmp_path / "i.parquet", "33TWL")] == ["S10", "S11", "S12", "S20", "S21", "S22"]


def test_tiles_and_scenes_out_of_place_are_the_callers_error(tmp_path):
    with InventoryWriter(tmp_path / "i.parquet", PERIOD, FROZEN) as writer:
        writer.add("33TWM", [])
        with pytest.raises(ValueError, match="33TWL after 33TWM"):
            writer.add("33TWL", [])
        with pytest.raises(ValueError, match="scenes of 33TWL under tile 33TWN"):
            writer.add("33TWN", [a_scene()])


def test_a_writer_that_does_not_finish_leaves_the_older_file_and_nothing_else(tmp_path):
    small(tmp_path / "i.parquet")
    before = (tmp_path / "i.parquet").read_bytes()
    with pytest.raises(RuntimeError), InventoryWriter(tmp_path / "i.parquet", PERIOD, FROZEN) as writer:
        writer.add("33TWL", [a_scene("new")])
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["i.parquet"]
    assert (tmp_path / "i.parquet").read_bytes() == before


def test_a_replaced_file_is_read_anew(tmp_path):
    small(tmp_path / "i.parquet")
    assert [s.id for s in read_tile(tmp_path / "i.parquet", "33TWL")] == ["a"]
    small(tmp_path / "i.parquet", **{"33TWL": [a_scene("another")]})
    assert [s.id for s in read_tile(tmp_path / "i.parquet", "33TWL")] == ["another"]


# --- refusals


def test_a_missing_file_and_a_tile_that_is_not_in_it_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.parquet: no such file; .*inventory build"):
        read_header(tmp_path / "gone.parquet")
    small(tmp_path / "i.parquet")
    with pytest.raises(BadInput, match="tile 01CCV is not in it; it has 33TWL"):
        read_tile(tmp_path / "i.parquet", "01CCV")


@pytest.mark.parametrize("left", [0, 3, 100, -1])
def test_a_cut_file_is_refused(tmp_path, left):
    small(tmp_path / "i.parquet")
    whole = (tmp_path / "i.parquet").read_bytes()
    (tmp_path / "i.parquet").write_bytes(whole[:left])
    with pytest.raises(BadInput, match="not a Parquet file, or cut short"):
        read_header(tmp_path / "i.parquet")


def test_another_parquet_file_is_no_inventory(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(BadInput, match="no inventory"):
        read_header(tmp_path / "other.parquet")


def test_a_newer_version_is_refused_by_number(tmp_path):
    small(tmp_path / "i.parquet")
    table = pq.read_table(tmp_path / "i.parquet")
    header = json.loads(pq.read_metadata(tmp_path / "i.parquet").metadata[inv.METADATA_KEY])
    assert header["version"] == inv.VERSION == 2
    newer = table.replace_schema_metadata({inv.METADATA_KEY: json.dumps(header | {"version": 3})})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(BadInput, match="has version 3: this release reads up to 2; use a newer tessera-beam"):
        read_header(tmp_path / "newer.parquet")


def test_damage_inside_the_rows_is_found_when_they_are_read(tmp_path):
    small(tmp_path / "i.parquet")
    data = bytearray((tmp_path / "i.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "i.parquet").write_bytes(data)
    assert read_header(tmp_path / "i.parquet").tiles == ("33TWL",)
    with pytest.raises(BadInput, match="tile 33TWL cannot be read"):
        read_tile(tmp_path / "i.parquet", "33TWL")


def test_the_order_of_a_catalogue_is_part_of_a_tile_s_digest_and_no_other_order_is():
    """The first burst of a day wins, and nothing but the list tells which is first."""
    first, second = (
        dataclasses.replace(a_scene(sensor=S1, id=name, orbit="ascending"), source=OPERA_RTC, order=n)
        for n, name in enumerate("ab")
    )
    swapped = [dataclasses.replace(first, order=1), dataclasses.replace(second, order=0)]
    later = [dataclasses.replace(first, order=4), dataclasses.replace(second, order=7)]  # others were dropped between
    assert tile_digest([first, second]) == tile_digest([second, first]) == tile_digest(later)
    assert tile_digest(swapped) != tile_digest([first, second])
    as_rtc = [[dataclasses.replace(s, source=PC_RTC) for s in pair] for pair in ([first, second], swapped)]
    assert tile_digest(as_rtc[0]) == tile_digest(as_rtc[1])


def test_scenes_that_are_not_those_that_were_frozen_are_refused(tmp_path, monkeypatch):
    path, asset = tmp_path / "i.parquet", Asset("VV", "a.tif", 32633, (10, 0, 600000, 0, -10, 5000040), 4, 4)
    moment = "2024-01-02T03:04:05.000000Z"
    one = Scene("33TWL", S1, PC_RTC, "a", moment, 0, "ascending", None, "", "", None, "", "", 0, "", True, "", (asset,))
    tiles = {"33TWL": [one], "33TWM": []}
    write_inventory(path, PERIOD, FROZEN, tiles, SOURCES)
    assert [frozen_digest(path, tile) for tile in tiles] == [tile_digest(found) for found in tiles.values()]
    assert read_tile(path, "33TWL") == [one] and read_tile(path, "33TWM") == []
    monkeypatch.setattr(
        inv, "scenes_of", lambda _: [dataclasses.replace(one, offset_dn=1000)]
    )  # a bit that has flipped
    with pytest.raises(BadInput, match="the scenes of tile 33TWL are not those that were frozen; build the inventory"):
        read_tile(path, "33TWL")
