"""The drift guard in a run: what it says of a block stands in receipt, pixels, status and page."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from pipeline import report, words
from pipeline.embed import embed
from pipeline.planning import EmbedOptions
from pipeline.status import status
from pipeline.verify import verify
from transforms.fragments import DRIFT, NO_OPTICAL, OUTSIDE
from transforms.inventory import read_header, read_tile, write_inventory
from transforms.regions import region_from_bbox

TILE = "33TUL"


def amended(world, path, wrong):
    """The planet's inventory, with the offset of some scenes of a tile taken for subtracted: what a lying flag does."""
    head = read_header(world.inv)
    tiles = {t: read_tile(world.inv, t) for t in head.tiles}
    tiles[TILE] = [dataclasses.replace(s, offset_dn=0) if wrong(s) else s for s in tiles[TILE]]
    write_inventory(path, head.period, head.frozen, tiles, head.sources)
    return str(path)


def run(world, inv, out):
    options = EmbedOptions(region=region_from_bbox(world.bbox), block_px=512, tiles=(TILE,))
    return embed(inv, world.model, str(out), options, "embed", lambda _: None, False)


def reasons_in(world, out):
    row, col, height, width = world.earth.island(TILE)
    with rasterio.open(next((out / "2024" / TILE).glob("*/reasons.tif"))) as file:
        return file.read(1)[row : row + height, col : col + width]


@pytest.fixture(scope="module")
def clean(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean")
    summary = run(world, world.inv, out)
    assert summary["totals"]["blocks_in_doubt"] == 0
    assert "missed" not in words.embedded(summary)
    return out


@pytest.fixture(scope="module", params=["one scene", pytest.param("every scene", marks=pytest.mark.slow)])
def drifting(request, world, tmp_path_factory):
    """An output made with the offset of one scene, or of all of them, left in; and those scenes."""
    scenes = [s for s in read_tile(world.inv, TILE) if s.kept and s.offset_dn]
    observed = {s.id for s in scenes}
    chosen = observed if request.param == "every scene" else {clearest(world, scenes)}
    folder = tmp_path_factory.mktemp("drifting")
    summary = run(world, amended(world, folder / "i.parquet", lambda s: s.id in chosen), folder / "out")
    doubted = sum(r["counts"]["drift"] > 0 for r in records(folder / "out"))
    assert doubted
    assert f"  {doubted} blocks look as if an offset of 1000 DN had been missed" in words.embedded(summary)
    return folder / "out", chosen


def clearest(world, scenes):
    return min(scenes, key=lambda s: (s.cloud_cover, s.id)).id


def records(out):
    return [json.loads(p.read_bytes()) for p in sorted(out.glob("_runs/*/blocks/*.json"))]


def test_a_right_inventory_raises_no_suspicion_and_its_measures_stand_in_the_receipt(clean):
    found = records(clean)
    assert found
    assert [r["warnings"] for r in found] == [[]] * len(found)
    assert status(str(clean))["warnings"] == []
    for r in found:
        assert r["counts"]["drift"] == 0
        if r["counts"]["embedded"]:
            assert r["drift"]["observations"] > 0
            assert len(r["drift"]["mean"]) == len(r["drift"]["std"]) == len(r["drift"]["sigma"]) == 10
    assert "Warnings (" not in Path(report.report(clean)).read_text()


def test_an_offset_left_in_is_said_in_receipt_pixels_status_and_page(world, clean, drifting):
    # Traps T7 and T9: a date in place of a baseline, a flag that lies.
    out, scenes = drifting
    suspected = [r for r in records(out) if r["warnings"]]
    assert suspected
    for r in suspected:
        assert "1000" in r["warnings"][0]
        assert all(f" {band} " in r["warnings"][0] for band in ("B04", "B02", "B12"))
        assert r["counts"]["drift"] == r["counts"]["embedded"]
        if len(scenes) == 1:
            assert r["drift"]["scenes"] == sorted(scenes)
    before, after = reasons_in(world, clean), reasons_in(world, out)
    flagged = (after & DRIFT) > 0
    assert flagged.any()
    np.testing.assert_array_equal(after & ~np.uint8(DRIFT), before)
    assert not (flagged & ((after & (NO_OPTICAL | OUTSIDE)) > 0)).any()
    state = status(str(out))
    said = [(w["tile"], w["row_px"], w["col_px"], w["reason"]) for w in state["warnings"]]
    assert said == sorted((r["tile"], r["row_px"], r["col_px"], w) for r in suspected for w in r["warnings"])
    text = words.status(state)
    page = Path(report.report(out)).read_text()
    for r in suspected:
        where = f"{r['row_px']}, {r['col_px']}"
        assert f"warning: tile {TILE}, block at row {r['row_px']}, col {r['col_px']}: " in text
        assert f'<td>{TILE}</td><td>2024</td><td class="n">{where}</td>' in page
    assert "drift_suspected" in page


@pytest.mark.slow
def test_a_suspected_tile_is_published_whole_and_passes_its_own_checks(world, drifting):
    out, _ = drifting
    found = verify(str(out), 2, 0, "cpu")
    assert [f for f in found["findings"] if not f["ok"]] == []
    blocks = pq.read_table(next((out / "2024" / TILE).glob("*/blocks.parquet"))).to_pylist()
    assert sum(b["count_drift"] for b in blocks) > 0
    assert [bool(json.loads(b["warnings"])) for b in blocks] == [b["count_drift"] > 0 for b in blocks]


@pytest.mark.slow
def test_blocks_that_wait_for_their_tile_warn_too(world, drifting, tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.steps.publish_if_complete", lambda *_: False)
    _, scenes = drifting
    inv = amended(world, tmp_path / "i.parquet", lambda s: s.id in scenes)
    run(world, inv, tmp_path / "out")
    state = status(str(tmp_path / "out"))
    assert {t["state"] for t in state["tiles"]} == {"unfinished"}
    assert state["warnings"]
