import dataclasses
import io

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from pipeline import console, words
from pipeline.coverage import KINDS, WORST, coverage_of, tile_counts, warnings_of
from pipeline.search_progress import Searched, SearchProgress, line_of
from transforms.periods import period_of
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Scene

YEAR = period_of("2024")
DAYS = st.dates(YEAR.start, YEAR.end)
PASS = {kind: (S2, "") if kind == S2 else (S1, kind.partition(" ")[2]) for kind in KINDS}


def scene(kind, day, kept=True, hour=10):
    sensor, orbit = PASS[kind]
    when = f"{day}T{hour:02d}:00:00.000000Z"
    return Scene(
        "33TWL", sensor, "s@p", f"{kind} {when}", when, 0, orbit, None, "", "", None, "", "", 0, "", kept, "", ()
    )  # fmt: skip


def months(first, last):
    return [f"2024-{m:02d}" for m in range(first, last + 1)]


def counts(*months_with_optical, radar=True):
    scenes = [scene(S2, f"2024-{m:02d}-03") for m in months_with_optical]
    return tile_counts([*scenes, *([scene(KINDS[1], "2024-05-03")] if radar else [])], YEAR)


@given(st.lists(st.tuples(st.sampled_from(KINDS), DAYS, st.booleans(), st.integers(0, 23)), max_size=60))
def test_dates_are_days_with_a_kept_scene_by_month_and_orbit(drawn):
    said = tile_counts([scene(*one) for one in drawn], YEAR)
    for kind in KINDS:
        kept = [day for k, day, keep, _ in drawn if k == kind and keep]
        assert said[kind] == len(kept)
        for n, month in enumerate(months(1, 12), start=1):
            assert said["months"][month][kind] == len({d for d in kept if d.month == n})
    assert said["dropped"] == sum(not keep for *_, keep, _ in drawn)
    for sensor in (S2, S1):
        seen = {day.month for k, day, keep, _ in drawn if keep and k.startswith(sensor)}
        assert said["months_without"][sensor] == [f"2024-{m:02d}" for m in range(1, 13) if m not in seen]


def test_a_period_across_new_year_has_months_of_both():
    said = tile_counts([scene(S2, "2024-01-05")], period_of("2023-06-15/2024-06-14"))
    assert [*said["months"]][0::12] == ["2023-06", "2024-06"]
    assert said["months"]["2024-01"][S2] == 1 and len(said["months_without"][S2]) == 12


def test_coverage_tells_medians_and_the_fewest_and_counts_what_lacks():
    tiles = {
        "A": counts(*range(1, 13)),
        "B": counts(*range(1, 12)),
        "C": counts(*range(1, 13), radar=False),
        "D": counts(radar=False),
    }
    said = coverage_of(tiles)
    assert said["tiles"] == 4 and said["tiles_without_optical"] == 1
    assert said["tiles_without_radar"] == 2 and said["tiles_with_empty_months"] == 2
    assert said["months"]["2024-12"][S2] == {"median": 0.5, "fewest": 0, "tiles_without": 2}
    assert said["months"]["2024-05"][f"{S1} {ASCENDING}"] == {"median": 0.5, "fewest": 0, "tiles_without": 2}
    assert said["months"]["2024-05"][f"{S1} {DESCENDING}"]["tiles_without"] == 4
    assert [w["tile"] for w in said["worst"]] == ["D", "B", "C"]
    assert said["worst"][1] == {
        "tile": "B", "optical_dates": 11, "radar_dates": 1, "months_without_optical": ["2024-12"],
    }  # fmt: skip


def test_whoever_lacks_something_is_warned_of_and_nobody_else():
    tiles = {"A": counts(*range(1, 13)), "B": counts(*range(2, 13), radar=False), "C": counts()}
    assert warnings_of(tiles) == [
        "tile B: no Sentinel-1 scene; embeddings are computed without radar",
        "tile B: no Sentinel-2 date in 2024-01",
        "tile C: no Sentinel-2 scene; none of its pixels will have an embedding",
    ]


def result(tiles):
    return {
        "inventory": "i.parquet", "period": "2024", "digest": "d" * 64, "tiles": tiles, "coverage": coverage_of(tiles),
        "dropped": {"cloud cover": 3}, "ignored": {"items without datetime": 2}, "warnings": warnings_of(tiles),
    }  # fmt: skip


def test_people_see_the_months_the_worst_tiles_and_what_was_passed_over():
    text = words.inventory(result({"A": counts(*range(1, 13)), "B": counts(*range(1, 12))}))
    assert "2024-12  0.5 (0)     0 (0)         0 (0)         no optical date in 1 of 2" in text
    assert "B has 11 optical and 1 radar dates; without an optical one: 2024-12" in text
    assert "left out: 3 cloud cover" in text and "passed over: 2 items without datetime" in text
    assert "A has" not in text


def test_a_planet_of_tiles_is_told_in_a_screenful():
    tiles = {f"T{n:05d}": counts(*range(1, 1 + n % 12)) for n in range(2000)}
    said = result(tiles)
    assert len(words.inventory(said).splitlines()) < 60
    assert len(said["coverage"]["worst"]) == WORST
    shown = words.inventory_warnings(said)
    assert len(shown) == 11 and shown[-1].startswith(f"and {len(said['warnings']) - 10} more")
    assert "167 have no optical scene" in shown[-1]


# --- progress


@pytest.mark.parametrize(
    ("state", "seconds", "line"),
    [
        (Searched(0, 300, 0, "", 0), 15, "   15 s  0 of 300 tiles, 0 scenes"),
        (Searched(100, 300, 100, "33TWL", 9000), 15, "   15 s  100 of 300 tiles, 9,000 scenes"),
        (
            Searched(150, 300, 100, "33TWL", 12_345),
            60,
            "   60 s  150 of 300 tiles, 12,345 scenes, 50.0 tiles a minute, about 3 min left",
        ),
        (
            Searched(2, 20_000, 0, "", 9),
            10,
            "   10 s  2 of 20000 tiles, 9 scenes, 12.0 tiles a minute, about 27.8 h left",
        ),
    ],
)
def test_a_line_tells_tiles_scenes_rate_and_time_left_by_what_this_build_did(state, seconds, line):
    assert line_of(state, seconds) == line


def test_a_terminal_gets_a_bar_and_a_log_gets_none(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(rich.console, "Console", lambda **_: real(file=shown, force_terminal=True, width=120))
    with SearchProgress(4, console.say, bar=True) as progress:
        progress(Searched(4, 4, 0, "33TWL", 1234))
    assert "tiles, 1,234 scenes" in shown.getvalue() and "4/4" in shown.getvalue()
    said = []
    with SearchProgress(4, said.append, bar=False) as progress:
        progress(dataclasses.replace(Searched(1, 4, 0, "33TWL", 5), done=2))
    assert said == [], "a build that ends before the first line is due needs none"


real = rich.console.Console
