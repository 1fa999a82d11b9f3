"""The page about training against the program: keys, defaults, forms, sizes and memory that it tells."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from records_made import records

from model.heads import parameter_count, projector_memory
from model.losses.variants import BARLOW, MIX
from model.records import S1_ROW, S2_ROW
from model.shard_file import parts_of
from model.training.config import TABLES
from model.training.tables import hyphened
from pipeline.training import shipped

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()


def section(title):
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    assert found, f"docs/training.md has no heading {title!r}"
    return found[1]


def rows(text):
    """The cells of every line of a section's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def said(field):
    """A default as the page writes it: as TOML has it."""
    if field.default is dataclasses.MISSING:
        return "needed"
    if field.default is None:
        return "not set"
    return f"`{json.dumps(field.default)}`"


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_every_key_of_a_table_with_its_default_and_no_other(table):
    told = {row[0].strip("`"): row[1] for row in rows(section(f"[{table}]"))[2:]}
    assert told == {hyphened(f.name): said(f) for f in dataclasses.fields(TABLES[table])}


@pytest.mark.parametrize("table", TABLES)
def test_the_page_says_which_keys_a_run_may_go_on_without(table):
    free = {hyphened(f.name) for f in dataclasses.fields(TABLES[table]) if f.metadata.get("free")}
    text = section(f"[{table}]")
    if table == "run":
        assert free == {hyphened(f.name) for f in dataclasses.fields(TABLES[table])} - {"seed"}
        assert "the only key here that is not *free*" in text
    else:
        assert {row[0].strip("`") for row in rows(text) if "*free*" in row[2]} == free


def test_the_page_has_every_form_of_the_losses_and_every_shipped_config():
    told = [row[0].strip("`") for row in rows(section("Views and losses"))]
    assert [name for name in told if name in BARLOW or name in MIX] == [*BARLOW, *MIX]
    assert {row[0].strip("`") for row in rows(section("The config"))[2:]} == set(shipped())


def test_the_page_tells_the_bytes_of_a_record_and_of_its_parts():
    told = {row[0]: row[1:] for row in rows(section("Shards"))}
    sizes = {n: sum(map(len, parts_of(records(n, dates=(3, 4), passes=(2, 3))))) for n in (512, 1024)}
    record = (sizes[1024] - sizes[512]) / 512
    place = round(record - 3 * S2_ROW.itemsize - 2 * S1_ROW.itemsize)
    parts = "place and land, where its rows lie", "an optical date", "a radar pass"
    assert [int(told[part][0]) for part in parts] == [place, S2_ROW.itemsize, S1_ROW.itemsize]
    for name, (said_bytes, shard, planet) in ((k, v) for k, v in told.items() if re.fullmatch(r"\d+ \+ \d+", k)):
        s2, s1 = map(int, name.split(" + "))
        whole = place + s2 * S2_ROW.itemsize + s1 * S1_ROW.itemsize
        assert (said_bytes, shard, planet) == (
            f"{whole:,}", f"{whole * 16384 / 1e6:.0f} MB", f"{whole * 8e8 / 1e12:.2f} TB"
        ), name  # fmt: skip


def test_the_page_tells_the_memory_sum_of_projectors():
    told = {row[0]: row[1:] for row in rows(section("Memory of a card")) if len(row) == 10}
    ways = [{}, {"ranks": 8}, {"ranks": 8, "split": True}, {"ranks": 8, "split": True, "weight_shards": 8}]
    for layers, width in ((3, 2048), (3, 4096), (3, 8192), (3, 16384), (6, 16384)):
        widths = (128, *[width] * layers)
        name = f"{layers} x {width:,}" + (" (the paper's)" if layers == 6 else "")
        sums = [projector_memory(widths, 1024, half=half, **way).total for half in (False, True) for way in ways]
        assert told[name] == [f"{parameter_count(widths) / 1e6:,.0f} M", *(f"{n / 2**30:.1f}" for n in sums)]
