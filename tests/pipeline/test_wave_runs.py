"""A job in waves: run after run, each of which can be run again alone."""

import functools
import json

import pytest
from conftest import contents

from pipeline.cli import run
from pipeline.waves import waves_of


@pytest.fixture
def a_wave_a_zone(monkeypatch):
    monkeypatch.setattr("pipeline.embed.waves_of", functools.partial(waves_of, most_tiles=1))


def embed(world, out, *more):
    where = ["--out", str(out), "--bbox", world.bbox, "--block", "512"]
    return ["embed", world.inv, "--model", world.model, *where, "--json", *more]


@pytest.mark.slow
def test_waves_give_what_one_job_gives_and_each_is_a_run_of_its_own(world, tmp_path, a_wave_a_zone, capfd):
    assert run(embed(world, tmp_path / "one")) == 0
    capfd.readouterr()
    assert run(embed(world, tmp_path / "waves", "--waves", "all")) == 0
    said = json.loads(capfd.readouterr().out)
    assert [w["wave"] for w in said["waves"]] == ["zone-32N", "zone-33N"]
    assert said["totals"]["tiles"] == sum(w["totals"]["tiles"] for w in said["waves"]) == len(world.earth.tiles)
    assert len({w["run"] for w in said["waves"]}) == 2
    found = {k: v for k, v in contents(tmp_path / "waves").items() if not k.endswith(".tiles.json")}  # what each did
    assert found == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_wave_can_be_run_alone_and_the_others_later(world, tmp_path, a_wave_a_zone, capfd):
    assert run(embed(world, tmp_path / "out", "--waves", "zone-33N")) == 0
    only = json.loads(capfd.readouterr().out)
    assert [w["wave"] for w in only["waves"]] == ["zone-33N"]
    assert {p.name[:2] for p in (tmp_path / "out" / "2024").iterdir()} == {"33"}
    assert run(embed(world, tmp_path / "out", "--waves", "zone-40N")) == 2
    assert "the nearest: zone-3" in capfd.readouterr().err
    assert run(embed(world, tmp_path / "out", "--waves", "all", "--dry-run")) == 0
    looked = json.loads(capfd.readouterr().out)
    assert list(looked["waves"]) == ["zone-32N", "zone-33N"] and looked["tiles_to_do"] < looked["tiles"]


def test_waves_are_not_left_to_themselves(world, tmp_path, capfd):
    where = ["--runner", "portable", "--set", "endpoint=localhost:1", "--set", "environment=external"]
    pool = ["--set", "worker-pool=localhost:2", "--device", "cpu", "--no-wait"]
    assert run(embed(world, tmp_path / "out", "--waves", "all", *where, *pool)) == 2
    assert "submit each alone" in capfd.readouterr().err
