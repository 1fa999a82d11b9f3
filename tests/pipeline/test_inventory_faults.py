import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from faulty_api import cut, empty, faulty_api, html, reset, stall, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stac_items import optical, radar

from model.errors import BadInput
from model.profile import ES_C1
from pipeline.cli import run
from pipeline.inventory import build
from pipeline.parts import Part, Parts
from transforms import grid
from transforms.catalogs import api as api_module
from transforms.catalogs.exchange import Patience
from transforms.inventory import SourceRecord, read_header, read_tile
from transforms.periods import period_of

YEAR = period_of("2024")
NOW = dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
TILES = ["33TWL", "33TWM", "33TWN", "33TXL", "33TXM", "33TXN"]
FAST = Patience(tries=4, first_s=0, answer_s=30)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(api_module, "PATIENCE", FAST)


def scene(tile, day, id=None, **more):
    id = id or f"{tile}-{day}"
    made = optical(ES_C1, tile=tile, id=id, datetime=f"{day}T10:00:00Z", **{"s2:datatake_id": id, **more})
    for asset in made["assets"].values():
        asset["href"] = f"HERE/files/{id}/{asset['href'].removeprefix('./')}"
    return made


def a_pass(day, orbit):
    made = radar(id=f"pass-{day}", datetime=f"{day}T05:00:00Z", **{"sat:orbit_state": orbit})
    for key, asset in made["assets"].items():
        asset["href"] = f"HERE/files/{made['id']}/{key}.tif"
    return made


def year_of(tile):
    return [scene(tile, f"2024-{month:02d}-{day:02d}") for month in range(1, 13) for day in (3, 23)]


ITEMS = [
    *(i for tile in TILES for i in year_of(tile)),
    *(a_pass(f"2024-{m:02d}-05", "ascending") for m in range(1, 13)),
]


def rows(path, tiles=TILES):
    """All scenes, without the port that a loopback server had."""
    return [read_tile(path, tile) for tile in tiles]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "i.parquet"
    with faulty_api(ITEMS) as (url, _api):
        said = build([(url, None)], YEAR, TILES, path, now=NOW)
    return path, said


def is_over(body, tile):
    west, south, east, north = grid.footprint(grid.tile_of(tile)).bounds
    return all(abs(a - b) < 1e-9 for a, b in zip(body["bbox"], (west, south, east, north), strict=True))


# --- what comes out


def test_an_undisturbed_build_has_every_scene_and_leaves_nothing_beside_it(undisturbed):
    path, said = undisturbed
    assert [p.name for p in path.parent.iterdir()] == ["i.parquet"]
    assert {t: n["S2"] for t, n in said["tiles"].items()} == dict.fromkeys(TILES, 24)
    assert said["kept_tiles"] == 0 and said["asked"].popitem()[1]["again"] == 0


@pytest.mark.slow
def test_hundreds_of_faults_leave_no_trace_in_the_scenes(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(api_module, "PATIENCE", Patience(tries=12, size_tries=2, first_s=0, answer_s=30))
    chance, given = random.Random(5), Counter()
    kinds = {
        "429": status(429), "500": status(500), "502": status(502), "503": status(503), "504": status(504),
        "after": status(503, Retry_After="0"), "html": html, "empty": empty, "reset": reset, "cut": cut,
    }  # fmt: skip

    def fault(_body, _before):
        if chance.random() < 0.5:
            name = chance.choice(sorted(kinds))
            given[name] += 1
            return kinds[name]
        return None

    with faulty_api(ITEMS) as (url, api):
        api.fault = fault
        said = build([(url, None)], YEAR, TILES, tmp_path / "i.parquet", now=NOW)
    assert sum(given.values()) > 100 and len(given) == len(kinds)
    assert said["digest"] == undisturbed[1]["digest"]
    assert rows(tmp_path / "i.parquet") == rows(undisturbed[0])


def test_records_with_something_missing_or_wrong_are_left_out_with_the_reason(tmp_path):
    items = [scene("33TWL", f"2024-05-{n:02d}", f"s{n}") for n in range(1, 8)]
    del items[1]["assets"]["scl"]
    del items[2]["assets"]["red"]["href"]
    items[3]["assets"]["nir"]["proj:shape"] = [20_000, 20_000]
    items[4]["assets"]["blue"]["proj:shape"] = [None, 10_980]
    items[5]["properties"] = {"datetime": "2024-05-06T10:00:00Z"}
    with faulty_api(items) as (url, _api):
        said = build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet", now=NOW)
    why = {s.id: s.dropped_reason for s in read_tile(tmp_path / "i.parquet", "33TWL")}
    assert why["s1"] == why["s7"] == ""
    assert why["s2"].startswith("no band SCL: ") and why["s3"].startswith("no band B04: ")
    assert why["s4"].startswith("wrong grid: B08") and why["s5"].startswith("no grid: B02")
    assert "s6" not in why, "a record without a tile is nobody's scene"
    assert said["dropped"] == {"no band SCL": 1, "no band B04": 1, "wrong grid": 1, "no grid": 1}


@pytest.mark.parametrize("tile", ["01WCQ", "33XWJ", "01CCV", "60CWS"])
def test_tiles_at_the_antimeridian_and_near_the_poles_are_searched_whole(tmp_path, tile):
    items = [scene(tile, f"2024-{m:02d}-11") for m in range(1, 13)]
    if tile == "01WCQ":  # a server that cuts there finds each of them on one side alone
        for n, item in enumerate(items):
            _, south, _, north = item["bbox"]
            item["bbox"] = [179.0, south, 180.0, north] if n % 2 else [-180.0, south, -178.0, north]
    with faulty_api(items) as (url, _api):
        said = build([(url, None)], YEAR, [tile], tmp_path / "i.parquet", now=NOW)
    assert said["tiles"][tile]["S2"] == 12 and not said["coverage"]["tiles_with_empty_months"]


# --- a build that fails, is killed or interrupted, and goes on


def blocked(tile, how):
    return lambda body, _before: how if is_over(body, tile) else None


@pytest.mark.slow
def test_a_tile_that_fails_for_good_ends_the_program_with_2_naming_tile_month_and_command(
    tmp_path, capsys, monkeypatch
):
    out = tmp_path / "i.parquet"
    with faulty_api(ITEMS) as (url, api):
        api.fault = lambda body, _: status(500) if is_over(body, "33TXN") and "2024-08" in body["datetime"] else None
        argv = [
            "inventory",
            "build",
            "--catalog",
            url,
            "--period",
            "2024",
            "--tiles",
            ",".join(TILES),
            "--out",
            str(out),
        ]
        monkeypatch.setattr(sys, "argv", ["tessera-beam", *argv])
        assert run(argv) == 2
        said = capsys.readouterr().err
        assert "HTTP status 500 after 4 tries" in said and "over tile 33TXN, 2024-0" in said
        assert "5 of 6 tiles are done and kept, to go on: tessera-beam inventory build --catalog" in said
        assert not out.exists()
        api.fault, api.searches[:] = (lambda *_: None), []
        assert run(argv) == 0
        assert "5 tiles were searched then" in capsys.readouterr().err
        assert all(is_over(b, "33TXN") for b in api.searches), "what was done is not asked for again"
    assert [p.name for p in tmp_path.iterdir()] == ["i.parquet"]


CHILD = """
import datetime as dt, sys
from pipeline.inventory import build
from transforms.periods import period_of
url, out, *tiles = sys.argv[1:]
build([(url, None)], period_of("2024"), tiles, out, now=dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.UTC))
"""


@contextlib.contextmanager
def begun(command, folder, parts):
    """A program, once so many parts are in the folder."""
    as_from_a_terminal = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's "&" ignores it
    child = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
    )
    try:
        ends = time.monotonic() + 120
        while len(list(folder.glob("*.part"))) < parts:
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < ends, "it never came so far"
            time.sleep(0.02)
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_makes_the_same_bytes(undisturbed, tmp_path):
    out = tmp_path / "i.parquet"
    with faulty_api(ITEMS) as (url, api):
        api.fault = blocked("33TXM", stall)  # the fifth of six: the fourth and the sixth may be done by then
        with begun(["-c", CHILD, url, str(out), *TILES], tmp_path / ".i.parquet.parts", 4) as child:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert not out.exists() and list(tmp_path.glob(".i.parquet.*.tmp")), "it was writing"
        done = {p.stem for p in (tmp_path / ".i.parquet.parts").glob("*.part")}
        api.fault, api.searches[:] = (lambda *_: None), []
        said = build([(url, None)], YEAR, TILES, out, now=NOW)
        again = {t for t in TILES for b in api.searches if is_over(b, t)}
        whole = build([(url, None)], YEAR, TILES, tmp_path / "whole.parquet", now=NOW)
    assert said["kept_tiles"] == len(done) >= 4 and again == set(TILES) - done
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert said["digest"] == whole["digest"] == undisturbed[1]["digest"]
    assert {k: v for k, v in said.items() if k not in ("inventory", "kept_tiles", "asked")} == {
        k: v for k, v in whole.items() if k not in ("inventory", "kept_tiles", "asked")
    }
    assert {p.name for p in tmp_path.iterdir()} == {"i.parquet", "whole.parquet"}


@pytest.mark.slow
def test_an_interrupt_ends_a_build_at_once_and_politely_though_a_server_is_silent(tmp_path):
    out, parts = tmp_path / "i.parquet", tmp_path / ".i.parquet.parts"
    with faulty_api(ITEMS) as (url, api):
        api.fault = blocked("33TXM", stall)
        words = ["inventory", "build", "--catalog", url, "--period", "2024", "--tiles", ",".join(TILES)]
        program = "from pipeline.cli import main; main()"
        with begun(["-c", program, *words, "--out", str(out)], parts, 4) as child:
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)  # the silent search alone would take 60 s
    assert child.returncode == 130, said
    assert "interrupted; what is finished stays" in said and "Traceback" not in said
    assert len(list(parts.glob("*.part"))) >= 4 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_the_freeze_time_is_that_of_the_first_build_that_is_gone_on_with(tmp_path):
    out = tmp_path / "i.parquet"
    with faulty_api(ITEMS) as (url, api):
        api.fault = blocked("33TXN", status(500))
        with pytest.raises(BadInput, match="5 of 6 tiles are done and kept, the same call goes on from there"):
            build([(url, None)], YEAR, TILES, out)
        began = json.loads((tmp_path / ".i.parquet.parts/build.json").read_text())["frozen"]
        api.fault = lambda *_: None
        told = []
        said = build([(url, None)], YEAR, TILES, out, say=told.append)
    assert said["frozen"] == began == read_header(out).frozen
    assert len(told) == 1 and f"goes on with the build of {began}; 5 tiles were searched then" in told[0]


def unfinished(tmp_path, url, api, **more):
    """A build that was left with five tiles of six."""
    api.fault = blocked("33TXN", status(500))
    with pytest.raises(BadInput):
        build([(url, None)], YEAR, TILES, tmp_path / "i.parquet", now=NOW, **more)
    api.fault, api.searches[:] = (lambda *_: None), []
    return sorted((tmp_path / ".i.parquet.parts").glob("*.part"))


@pytest.mark.slow
def test_a_damaged_part_is_searched_again(undisturbed, tmp_path):
    with faulty_api(ITEMS) as (url, api):
        part = unfinished(tmp_path, url, api)[1]
        part.write_bytes(part.read_bytes()[:-1])
        said = build([(url, None)], YEAR, TILES, tmp_path / "i.parquet", now=NOW)
        assert {t for t in TILES for b in api.searches if is_over(b, t)} == {part.stem, "33TXN"}
    assert said["kept_tiles"] == 4 and rows(tmp_path / "i.parquet") == rows(undisturbed[0])


@pytest.fixture(scope="module")
def a_part(undisturbed):
    sources = (SourceRecord("s@p", "https://h/v1", "https://h/v1"),)
    return Part("33TWL", read_tile(undisturbed[0], "33TWL"), sources, {"items without datetime": 3})


def test_a_part_is_read_as_it_was_written_and_only_for_its_own_arguments(a_part, tmp_path):
    parts = Parts(tmp_path / "i.parquet", ["a"], "2025")
    assert parts.load("33TWL") is None
    parts.save(a_part)
    assert parts.load("33TWL") == dataclasses.replace(a_part, kept=True) and len(parts) == 1
    assert parts.load("33TWM") is None
    parts.close(remove=False)
    other = Parts(tmp_path / "j.parquet", ["b"], "2025")
    (other.folder / "33TWL.part").write_bytes((parts.folder / "33TWL.part").read_bytes())
    assert other.load("33TWL") is None
    other.close(remove=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_part_goes_unseen(a_part, tmp_path, data):
    parts = Parts(tmp_path / "i.parquet", ["a"], "2025")
    parts.save(a_part)
    file = parts.folder / "33TWL.part"
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.write_bytes(whole[:place])
    else:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    assert parts.load("33TWL") is None
    parts.close(remove=True)


@pytest.mark.parametrize(("old", "new"), [(b"part 1 ", b"part 2 "), (b'"33TWM"', b'"33TWL"')])
def test_a_part_of_another_version_or_tile_is_not_taken(a_part, tmp_path, old, new):
    parts = Parts(tmp_path / "i.parquet", ["a"], "2025")
    parts.save(dataclasses.replace(a_part, tile="33TWM"))
    first, _, rest = (parts.folder / "33TWM.part").read_bytes().partition(b"\n")
    rest = rest.replace(old, new, 1)
    first = first.replace(old, new).rsplit(b" ", 1)[0] + b" " + hashlib.sha256(rest).hexdigest().encode()
    (parts.folder / "33TWM.part").write_bytes(first + b"\n" + rest)
    assert parts.load("33TWM") is None
    parts.close(remove=True)


@pytest.mark.slow
def test_parts_of_other_arguments_are_dropped_with_a_sentence(tmp_path):
    with faulty_api(ITEMS) as (url, api):
        unfinished(tmp_path, url, api)
        told = []
        other = period_of("2023-06-01/2024-05-31")
        said = build([(url, None)], other, TILES, tmp_path / "i.parquet", now=NOW, say=told.append)
    assert said["kept_tiles"] == 0 and said["tiles"]["33TWL"]["S2"] == 10
    assert len(told) == 1 and "what an earlier build with other arguments had found is dropped" in told[0]


@pytest.mark.slow
def test_more_tiles_may_join_a_build_that_was_left(tmp_path):
    with faulty_api(ITEMS) as (url, api):
        unfinished(tmp_path, url, api)
        said = build([(url, None)], YEAR, [*TILES, "33TWK"], tmp_path / "i.parquet", now=NOW)
        assert said["kept_tiles"] == 5 and list(said["tiles"]) == sorted([*TILES, "33TWK"])
        assert {t for t in [*TILES, "33TWK"] for b in api.searches if is_over(b, t)} == {"33TXN", "33TWK"}


def test_two_builds_of_one_inventory_at_once_are_refused(tmp_path):
    first = Parts(tmp_path / "i.parquet", ["a"], "2025")
    with pytest.raises(BadInput, match=r"i\.parquet: another build is writing it"):
        Parts(tmp_path / "i.parquet", ["a"], "2025")
    first.close(remove=False)
    Parts(tmp_path / "i.parquet", ["b"], "2025").close(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_changed_catalogue_on_disk_is_searched_anew(tmp_path):
    folder = tmp_path / "cat"
    folder.mkdir()
    for n, item in enumerate(year_of("33TWL")):
        (folder / f"{n}.json").write_text(json.dumps(item).replace("HERE", "https://h"))
    evil = json.dumps(scene("33TWM", "2024-05-01")).replace("HERE/files", "../..")
    (folder / "evil.json").write_text(evil)
    with pytest.raises(BadInput, match=r"leads out of the catalogue.*1 of 2 tiles are done and kept"):
        build([(str(folder), None)], YEAR, ["33TWL", "33TWM"], tmp_path / "i.parquet", now=NOW)
    (folder / "evil.json").write_text(evil.replace("../..", "https://h"))
    said = build([(str(folder), None)], YEAR, ["33TWL", "33TWM"], tmp_path / "i.parquet", now=NOW)
    assert said["kept_tiles"] == 0 and said["tiles"]["33TWM"]["S2"] == 1


def test_a_search_that_cannot_give_all_it_counts_stops_the_build(tmp_path):
    with faulty_api(ITEMS) as (url, api):
        api.matched = lambda n: n + 1
        with pytest.raises(BadInput, match=r"1 items counted and 0 given.*a part of the scenes would be missing"):
            build([(url, None)], YEAR, TILES[:1], tmp_path / "i.parquet")
    assert not list(tmp_path.iterdir()), "nothing was done, so nothing is kept"


@pytest.mark.slow
def test_progress_comes_in_the_order_of_tiles_with_the_scenes_so_far(tmp_path):
    with faulty_api(ITEMS) as (url, _api):
        seen = []
        build([(url, None)], YEAR, TILES, tmp_path / "i.parquet", now=NOW, progress=seen.append)
    assert [s.tile for s in seen] == TILES and [s.done for s in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].scenes == sum(len(r) for r in rows(tmp_path / "i.parquet"))
