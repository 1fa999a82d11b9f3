import json
import shutil
from pathlib import Path

import pytest
from earth_search_items import ITEMS, NOW, YEAR, optical, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.profile import ES_C1, PC_L2A, PC_RTC
from pipeline.inventory import amend, build, explain
from pipeline.search_progress import Searched
from transforms.inventory import read_header, read_tile
from transforms.periods import period_of

SHARED = Path(__file__).parents[2] / "../shared"
MPC, AWS = SHARED / "golden/scenes_mpc", SHARED / "golden/scenes_aws"
golden = pytest.mark.skipif(not MPC.is_dir(), reason="no ../shared/golden")


@pytest.fixture
def inventory(tmp_path):
    build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL"], tmp_path / "i.parquet", now=NOW)
    return tmp_path / "i.parquet"


# --- build


def test_building_freezes_the_scenes_of_the_period_and_counts_them(tmp_path):
    seen = []
    catalog = str(write(tmp_path / "cat"))
    said = build([(catalog, None)], YEAR, ["33TWM", "33TWL"], tmp_path / "new/i.parquet", "a box", NOW, seen.append)
    counts = said["tiles"]["33TWL"]
    assert (counts["S2"], counts["S1 ascending"], counts["S1 descending"], counts["dropped"]) == (3, 1, 1, 1)
    assert list(counts["months"]) == [f"2024-{m:02d}" for m in range(1, 13)]
    assert counts["months"]["2024-01"] == {"S2": 1, "S1 ascending": 0, "S1 descending": 0}
    assert counts["months"]["2024-05"] == {"S2": 1, "S1 ascending": 1, "S1 descending": 1}
    assert counts["months_without"]["S1"] == [m for m in counts["months"] if m != "2024-05"]
    assert said["dropped"] == {"cloud cover": 1} and said["frozen"] == "2025-01-02T03:04:05.000000Z"
    assert seen == [Searched(1, 2, 0, "33TWL", 6), Searched(2, 2, 0, "33TWM", 9)]
    header = read_header(tmp_path / "new/i.parquet")
    assert (header.digest, header.frozen, header.region) == (said["digest"], said["frozen"], "a box")
    assert header.tiles == ("33TWL", "33TWM") and header.period == YEAR
    assert header.roots == {ES_C1: catalog, PC_RTC: catalog}
    scenes = read_tile(tmp_path / "new/i.parquet", "33TWL")
    assert [(s.sensor, s.order, s.id, s.kept) for s in scenes] == [
        ("S1", 0, "up", True),
        ("S1", 1, "down", True),
        ("S2", 0, "jan", True),
        ("S2", 1, "feb", True),
        ("S2", 2, "may", True),
        ("S2", 3, "cloudy", False),
    ]
    assert scenes[2].assets[0].href == "B04.tif"
    json.dumps(said)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(ITEMS))
def test_the_same_items_under_other_names_make_the_same_file(tmp_path, items):
    files = []
    for listing in (ITEMS, items):
        shutil.rmtree(tmp_path / "cat", ignore_errors=True)
        build([(str(write(tmp_path / "cat", listing)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet", now=NOW)
        files.append((tmp_path / "i.parquet").read_bytes())
    assert files[0] == files[1]


def test_a_catalogue_that_was_moved_gives_the_same_digest(tmp_path):
    a = build([(str(write(tmp_path / "a")), None)], YEAR, ["33TWL"], tmp_path / "a.parquet")
    b = build([(str(write(tmp_path / "b/c")), None)], YEAR, ["33TWL"], tmp_path / "b.parquet")
    assert a["digest"] == b["digest"]


def test_optical_and_radar_may_come_from_two_catalogues(tmp_path):
    catalogs = [
        (str(write(tmp_path / "s2", ITEMS[:6])), "earth-search"),
        (str(write(tmp_path / "s1", ITEMS[6:])), None),
    ]
    build(catalogs, YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert read_header(tmp_path / "i.parquet").roots == {ES_C1: catalogs[0][0], PC_RTC: catalogs[1][0]}
    whole = build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL"], tmp_path / "w.parquet")
    assert whole["digest"] == read_header(tmp_path / "i.parquet").digest


def test_one_source_from_two_roots_is_refused(tmp_path):
    catalogs = [(str(write(tmp_path / name)), None) for name in "ab"]
    with pytest.raises(BadInput, match=r"both hold .*one root for a source"):
        build(catalogs, YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert not (tmp_path / "i.parquet").exists()


def test_tiles_without_optical_scenes_are_recorded_and_warned_of(tmp_path):
    said = build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL", "01CCV"], tmp_path / "i.parquet")
    assert any(w.startswith("tile 01CCV: no Sentinel-2 scene") for w in said["warnings"])
    assert any(w.startswith("tile 33TWL: no Sentinel-2 date in 2024-03, 2024-04, 2024-06") for w in said["warnings"])
    assert read_tile(tmp_path / "i.parquet", "01CCV") == []
    said = build([(str(write(tmp_path / "s2", ITEMS[:6])), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert any(w == "tile 33TWL: no Sentinel-1 scene; embeddings are computed without radar" for w in said["warnings"])


@pytest.mark.parametrize(
    ("period", "tile", "words"),
    [
        ("2031", "33TWL", "period 2031: no usable Sentinel-2 scene of 33TWL; .* has 2023-12-31..2024-05-11"),
        ("2024", "01CCV", "no usable Sentinel-2 scene of 01CCV"),
        ("2024", "33XYZ", "33XYZ"),
    ],
)
def test_a_search_that_finds_nothing_says_what_there_is_and_leaves_no_file(tmp_path, period, tile, words):
    catalog = str(write(tmp_path / "cat"))
    with pytest.raises(BadInput, match=words):
        build([(catalog, None)], period_of(period), [tile], tmp_path / "i.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]


def test_a_search_that_finds_only_what_cannot_be_used_says_why(tmp_path):
    items = [optical("a", cloud=100), {**optical("b"), "collection": "landsat-c2-l2"}]
    with pytest.raises(BadInput, match=r"left out: 1 for cloud cover; .*1 items of collection landsat-c2-l2"):
        build([(str(write(tmp_path / "cat", items)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


def test_an_item_that_leads_out_of_its_catalogue_stops_the_build(tmp_path):
    items = [*ITEMS, optical("evil", href="../../etc/{band}")]
    with pytest.raises(BadInput, match=r"item evil: href '../../etc/B04' leads out of the catalogue"):
        build([(str(write(tmp_path / "cat", items)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


@pytest.mark.parametrize(("catalogs", "tiles"), [([], ["33TWL"]), ([("earth-search", None)], [])])
def test_nothing_to_search_or_nowhere_is_refused(tmp_path, catalogs, tiles):
    with pytest.raises(BadInput, match=r"no catalogue|no tiles"):
        build(catalogs, YEAR, tiles, tmp_path / "i.parquet")


@golden
def test_the_golden_scenes_of_planetary_computer_are_read_as_their_readme_says(tmp_path):
    period = period_of("2021-02-01/2022-01-31")
    said = build([(str(MPC / "items"), "planetary-computer")], period, ["33TWL"], tmp_path / "i.parquet", now=NOW)
    counts = said["tiles"]["33TWL"]
    assert (counts["S2"], counts["S1 ascending"], counts["S1 descending"]) == (9, 6, 5)
    assert said["dropped"] == {"cloud cover": 1}
    scenes = read_tile(tmp_path / "i.parquet", "33TWL")
    assert {s.datetime[:10] for s in scenes if not s.kept} == {"2021-06-11"}
    offsets = {s.datetime[:10]: s.offset_dn for s in scenes if s.source == PC_L2A}
    assert {day for day, dn in offsets.items() if dn} == {"2022-01-28", "2022-01-30"}
    listed = json.loads((MPC / "catalogue.json").read_text())
    newest_first = [Path(p).stem for p in listed["sentinel-1-rtc"]]
    assert [s.id for s in scenes if s.sensor == "S1"] == newest_first
    assert {s.asset("VV").epsg for s in scenes if s.datetime.startswith("2021-06-17")} == {32632}
    again = build([(str(MPC / "catalogue.json"), None)], period, ["33TWL"], tmp_path / "j.parquet", now=NOW)
    assert again["tiles"] == said["tiles"]


@golden
def test_the_golden_scenes_of_earth_search_have_no_offset(tmp_path):
    build([(str(AWS / "items"), "earth-search")], YEAR, ["33TWL"], tmp_path / "i.parquet")
    scenes = read_tile(tmp_path / "i.parquet", "33TWL")
    assert len(scenes) == 10 and {s.offset_dn for s in scenes} == {0} and sum(s.kept for s in scenes) == 9


# --- explain


def test_explaining_tells_every_decision_in_words(inventory):
    text = explain(inventory, "may")["text"]
    for words in ("33TWL", ES_C1, "baseline 05.10", "1000 DN", "10 %", "order       2", "raster:bands declare", "kept"):
        assert words in text
    assert "left out    cloud cover: 100 %" in explain(inventory, "cloudy")["text"]
    assert "orbit ascending" in explain(inventory, "up")["text"]
    json.dumps(explain(inventory, "may"))


def test_explaining_an_unknown_scene_names_the_closest(inventory):
    with pytest.raises(BadInput, match="no scene clody; the closest are cloudy"):
        explain(inventory, "clody")


# --- amend


def test_amending_leaves_a_scene_out_on_the_record_and_the_original_as_it_was(inventory, tmp_path):
    before = inventory.read_bytes()
    said = amend(inventory, [("may", None)], "haze", tmp_path / "j.parquet")
    scenes = {s.id: s for s in read_tile(tmp_path / "j.parquet", "33TWL")}
    assert not scenes["may"].kept and scenes["may"].dropped_reason == "amended: haze"
    old, new = read_header(inventory), read_header(tmp_path / "j.parquet")
    assert inventory.read_bytes() == before
    assert new.digest == said["digest"] != old.digest and new.counts["33TWL"].digest != old.counts["33TWL"].digest
    assert new.counts["33TWL"].s2 == 2 and new.amendments == ("may: haze",) and new.frozen == old.frozen
    assert "left out    amended: haze" in explain(tmp_path / "j.parquet", "may")["text"]
    others = [s for s in read_tile(inventory, "33TWL") if s.id != "may"]
    assert [s for i, s in scenes.items() if i != "may"] == others


def test_dropping_a_band_takes_an_optical_scene_and_leaves_a_radar_one_its_other_polarisation(inventory, tmp_path):
    amend(inventory, [("may", "B11"), ("up", "VH")], "cut short", tmp_path / "j.parquet")
    scenes = {s.id: s for s in read_tile(tmp_path / "j.parquet", "33TWL")}
    assert not scenes["may"].kept and "B11" in scenes["may"].dropped_reason
    assert scenes["up"].kept and [a.band for a in scenes["up"].assets] == ["VV"]
    assert "kept, less  amended: cut short (band VH)" in explain(tmp_path / "j.parquet", "up")["text"]
    said = amend(tmp_path / "j.parquet", [("up", "VV")], "that too", tmp_path / "k.parquet")
    assert not {s.id: s for s in read_tile(tmp_path / "k.parquet", "33TWL")}["up"].kept
    assert read_header(tmp_path / "k.parquet").amendments == (
        "may (for its band B11): cut short",
        "up, band VH: cut short",
        *said["amended"],
    )


@pytest.mark.parametrize(
    ("drops", "reason", "words"),
    [
        ([("mai", None)], "x", "no scene mai; the closest are may"),
        ([("may", "VV")], "x", "scene may has no band VV; it has B04"),
        ([("cloudy", None)], "x", "left out already: cloud cover"),
        ([], "x", "needs --drop"),
        ([("may", None)], " ", "needs --drop"),
    ],
)
def test_an_amendment_that_changes_nothing_is_refused(inventory, tmp_path, drops, reason, words):
    with pytest.raises(BadInput, match=words):
        amend(inventory, drops, reason, tmp_path / "j.parquet")
    assert not (tmp_path / "j.parquet").exists()


def test_an_amendment_never_writes_over_its_inventory(inventory):
    with pytest.raises(BadInput, match="is the inventory itself"):
        amend(inventory, [("may", None)], "x", inventory)
