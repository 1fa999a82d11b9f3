"""The rehearsal of a planet at a size for every day: 40 tiles from all over the Earth, a few scenes each."""

import json
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planet import course, earth, madeup, run, store

from model.errors import BadInput
from transforms.disk_store import LocalStore
from transforms.inventory import read_tile
from transforms.land import land_fraction
from transforms.plans import Plan, tasks_of
from transforms.storage import open_store

TILES = 40
FAILING = 2000  # per million: of these tiles' blocks a few


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    path = tmp_path_factory.mktemp("year") / "y.parquet"
    return path, course.inventory(str(path), TILES, s2=6, s1=2)


@pytest.fixture(scope="module")
def plan(year, tmp_path_factory):
    return course.prepare(str(year[0]), str(tmp_path_factory.mktemp("planned")), TILES)["plan"]


@pytest.fixture(scope="module")
def told(plan):
    return course.records(plan, FAILING)


def test_the_planets_tiles_are_land_and_lie_everywhere():
    names = earth.planet_tiles(400)
    assert len(set(names)) == 400 and names == sorted(names)
    assert min(map(land_fraction, names)) > 0
    assert len({name[:2] for name in names}) > 50 and len({name[2] for name in names}) > 12


def test_the_made_up_year_is_an_inventory_like_any_other(year):
    path, said = year
    assert (said["tiles"], said["scenes"]) == (TILES, TILES * 8)
    tile = earth.planet_tiles(TILES)[7]
    assert len(read_tile(path, tile)) == 8  # held against its digest
    scenes = earth.scenes_of(tile)
    assert len(scenes) == earth.S2_SCENES + earth.S1_SCENES
    assert 0 < sum(not s.kept for s in scenes) < 10
    assert len({s.id for s in scenes}) == len(scenes)


def test_a_run_with_failures_publishes_the_other_tiles_and_the_next_run_the_rest(told, plan):
    failing = failing_blocks(Plan(**json.loads(plan)))
    assert 0 < len(failing) < TILES
    assert told["record1_blocks_failed"] == len(failing)
    assert told["record1_tiles_published"] == TILES - len({b.tile for b in failing})
    assert told["record2_tiles_published"] == told["finish_tiles_published"] == TILES
    assert told["record2_blocks_done"] == len(failing), "nothing but what had failed is made again"
    assert told["status_states"] == {"published": TILES}


def failing_blocks(plan: Plan):
    tasks = [t for tile in earth.planet_tiles(TILES) for t in tasks_of(tile, "", None, plan.block_px)]
    return [t.block for t in tasks if madeup.fails(t, FAILING)]


def test_every_tile_is_published_once_and_with_its_last_block(told):
    assert (told["published"], told["twice"], told["late"]) == (TILES, 0, 0)
    assert told["left"] == 0, "receipts and fragments of published tiles are gone"


def test_few_blocks_wait_for_their_tile_at_any_time(told):
    assert told["most_waiting"] < told["blocks"] / 4


def test_status_asks_the_store_no_more_than_once_a_tile(told):
    assert told["status_requests"] < TILES + 20


def test_the_order_of_events_shows_a_tile_that_waited_and_one_that_was_published_twice():
    found = course.order_of([("a", False), ("b", False), ("a", True), ("b", False), ("b", True), ("b", True)])
    assert (found["published"], found["twice"], found["late"], found["most_waiting"]) == (2, 1, 1, 2)


def test_a_rehearsal_that_misses_a_limit_says_which():
    row = {"what": "blocks spread", "tiles": 3, "blocks": 108, "cpu_seconds": 1.0, "peak_mb": 300.0, "slope_bytes": 9}
    records = {"published": 3, "twice": 0, "late": 0, "left": 0, "status_states": {"published": 3}}
    kill = {"killed": True, "items": 2, "tiles": 2, "twice": 0, "left": 0}
    assert list(run.missed([row], records, kill, run.Limits())) == []
    for wrong, words in (({"cpu_seconds": 121.0}, "121"), ({"peak_mb": 1501.0}, "MB"), ({"slope_bytes": 1501}, "more")):
        (said,) = run.missed([row | wrong], records, kill, run.Limits())
        assert words in said
    (said,) = run.missed([row], records | {"late": 1}, kill, None)
    assert "1 after a block of another tile" in said
    (said,) = run.missed([row], records, kill | {"twice": 1}, None)
    assert "1 twice" in said


@pytest.mark.slow  # three processes, each of which loads Beam
def test_a_killed_rehearsal_is_finished_by_the_next_run_and_publishes_every_tile_once(year, tmp_path):
    told = run.killed(str(year[0]), tmp_path, 10, per_million=FAILING)
    assert told["killed"] and 0 < told["blocks_before"] < 10 * course.BLOCKS
    assert (told["items"], told["twice"], told["left"]) == (10, 0, 0)
    assert 0 < told["items_before"] < 10


NAMES = st.sampled_from(["x", "a/b/c", "a/b/d", "a/e", "b/c", "b/f/g/h"])
VERBS = st.tuples(st.sampled_from(["replace", "put_if_absent", "delete", "delete_all"]), NAMES)


@given(st.lists(VERBS, max_size=12))
def test_the_stores_double_keeps_and_lists_what_a_disk_does(verbs):
    double = store.MemoryStore("rehearsal://compared")
    with tempfile.TemporaryDirectory() as folder:
        disk = LocalStore(folder)
        for n, (verb, name) in enumerate(verbs):
            if verb == "delete_all":
                name = name.partition("/")[0] + "/b"
            data = (str(n).encode(),) if verb in ("replace", "put_if_absent") else ()
            assert getattr(double, verb)(name, *data) == getattr(disk, verb)(name, *data)
        for prefix in ("", "a", "a/b", "b", "b/f", "none"):
            assert double.names(prefix) == disk.names(prefix)
            # A disk may keep a folder in which there are only empty ones.
            assert double.folders(prefix) == [f for f in disk.folders(prefix) if list(disk.walk(f))]
            here, there = list(double.walk(prefix)), list(disk.walk(prefix))
            assert [(e.name, e.stat.size_bytes) for e in here] == [(e.name, e.stat.size_bytes) for e in there]
            assert [double.get(e.name) for e in here] == [disk.get(e.name) for e in there]


def test_the_stores_double_replaces_only_the_version_that_is_there():
    double = store.MemoryStore("rehearsal://versions")
    assert double.replace_if("a", b"1", "") and not double.replace_if("a", b"2", "")
    version = double.load("a").version
    assert double.replace_if("a", b"3", version) and not double.replace_if("a", b"4", version)
    assert double.load("a").data == b"3"


def test_a_store_of_ones_own_is_opened_by_its_scheme():
    kept = open_store("rehearsal://some/place")
    kept.replace("a/b", b"1")
    assert open_store("rehearsal://some/place").get("a/b") == b"1"
    store.forget("rehearsal://some/place")
    assert open_store("rehearsal://some/place").stat("a/b") is None
    with pytest.raises(BadInput, match="this release writes to"):
        open_store("nowhere://some/place")
