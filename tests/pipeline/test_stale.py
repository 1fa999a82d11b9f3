"""stale: tiles that another inventory, model or release would change, and those that it would not."""

import json

import pytest

from pipeline import inventory as verbs
from pipeline.cli import run
from transforms.inventory import read_tile
from transforms.scenes import S2

TILE = "33TUL"


@pytest.fixture(scope="module")
def out(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("stale") / "out"
    where = ["--bbox", world.bbox, "--tiles", TILE, "--block", "512"]
    assert run(["embed", world.inv, "--model", world.model, "--out", str(out), *where]) == 0
    return out


def said(capfd, *argv):
    capfd.readouterr()
    assert run(["stale", *argv, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_a_tile_of_the_same_scenes_is_fresh_and_what_is_not_published_is_missing(world, out, capfd):
    found = said(capfd, str(out), "--inventory", world.inv)
    assert found["fresh"] == 1 and not found["elsewhere"] and found["beyond"] == []
    assert [(r["tile"], r["why"]) for r in found["tiles"]] == [
        (t, "missing") for t in sorted(world.earth.tiles) if t != TILE
    ]
    assert found["quote"]["blocks"] == 36 * (len(world.earth.tiles) - 1)


def test_a_dropped_scene_makes_its_tile_stale_by_name_and_embed_takes_the_list(world, out, tmp_path, capfd):
    scene = next(s.id for s in read_tile(world.inv, TILE) if s.kept and s.sensor == S2)
    newer = str(tmp_path / "newer.parquet")
    verbs.amend(world.inv, [(scene, None)], "a haze", newer)
    names = tmp_path / "stale.txt"
    found = said(capfd, str(out), "--inventory", newer, "--out", str(names))
    (row,) = [r for r in found["tiles"] if r["tile"] == TILE]
    assert row == {"tile": TILE, "why": "scenes", "added": [], "removed": [], "changed": [scene]}
    assert TILE in names.read_text().splitlines()
    assert run(["stale", str(out), "--inventory", newer]) == 0
    assert f"{TILE}  1 changed ({scene})" in capfd.readouterr().out
    where = ["--bbox", world.bbox, "--tiles", f"@{names}", "--block", "512", "--dry-run", "--json"]
    assert run(["embed", newer, "--model", world.model, "--out", str(out), *where]) == 0
    assert json.loads(capfd.readouterr().out)["tiles_to_do"] >= 1


def test_another_release_of_pixels_makes_every_tile_stale(world, out, capfd, monkeypatch):
    monkeypatch.setattr("transforms.plans.PIXEL_VERSION", 2)
    (row,) = [r for r in said(capfd, str(out), "--inventory", world.inv)["tiles"] if r["tile"] == TILE]
    assert row == {"tile": TILE, "why": "release"}


def test_another_model_needs_another_output(world, out, tmp_path, capfd, monkeypatch):
    from pipeline import stale

    whole = stale.product_record
    monkeypatch.setattr(stale, "product_record", lambda *a: whole(*a) | {"model_sha256": "0" * 64})
    found = said(capfd, str(out), "--inventory", world.inv)
    assert found["elsewhere"] and {r["why"] for r in found["tiles"] if r["tile"] == TILE} == {"model"}
    assert run(["stale", str(out), "--inventory", world.inv]) == 0
    assert "give embed another --out" in capfd.readouterr().out


def test_what_is_no_output_or_no_inventory_is_refused(world, tmp_path):
    assert run(["stale", str(tmp_path), "--inventory", world.inv]) == 2
    assert run(["stale", str(tmp_path / "gone"), "--inventory", str(tmp_path / "gone.parquet")]) == 2
