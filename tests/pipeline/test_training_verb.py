"""`train run` as a person meets it: what it prints, how it ends, and that it goes on after any end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_sets import CONFIG, small_set

from model.training import checkpoint, progress
from pipeline.cli_train import app
from pipeline.exits import ended

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pipeline.cli_train import app
from pipeline.exits import ended
sys.exit(ended(app, sys.argv[1:]))
"""
PATIENCE_S = 600  # when a process that should have got somewhere is given up


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    shards = small_set(folder / "shards").folder
    path = folder / "tiny.toml"
    path.write_text(CONFIG.format(shards=str(shards)))
    return path


def told(out):
    clocks = ("pixels_per_s", "seconds")
    return [{k: v for k, v in line.items() if k not in clocks} for line in progress.read(out)]


def test_it_prints_one_object_and_the_next_run_finds_it_done(config, tmp_path, capfd):
    given = ["run", str(config), "--out", str(tmp_path / "run"), "--set", "schedule.steps=2"]
    assert ended(app, [*given, "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert result["complete"] and result["step"] == 2 and result["config"]["data"]["batch"] == 14
    assert "projector 8 x 12 x 12" in err and "step 2 of 2: loss" in err
    assert ended(app, given) == 0
    out, err = capfd.readouterr()
    assert "2 of 2 steps are done" in err and "next: tessera-beam model export" in out


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("encoder.widht=4", 2, "[encoder] has no 'widht' (did you mean width?)"),
        ("data.shards=nowhere", 2, "nowhere: no manifest.json there"),
        ("optimiser.rate=1e30", 4, "is not finite"),
    ],
)
def test_what_is_wrong_ends_it_with_its_code_and_a_sentence(config, tmp_path, capfd, override, code, said):
    more = ["--set", "optimiser.clip=0.0", "--set", "schedule.warmup=0.0", "--set", override]
    assert ended(app, ["run", str(config), "--out", str(tmp_path), *more]) == code
    out, err = capfd.readouterr()
    assert said in err and "Traceback" not in err and not out


def test_begun_anew_it_takes_the_place_of_another_training(config, tmp_path, capfd):
    given = ["run", str(config), "--out", str(tmp_path), "--set", "schedule.steps=1"]
    assert ended(app, given) == 0
    assert ended(app, [*given, "--set", "run.seed=9"]) == 2
    assert "run.seed is 9, there 3" in capfd.readouterr().err
    assert ended(app, [*given, "--set", "run.seed=9", "--fresh"]) == 0


def started(config, out, *more, launcher=()):
    """The verb in a process of its own."""
    program = [*launcher, sys.executable, "-c", PROGRAM] if launcher else [sys.executable, "-c", PROGRAM]
    command = [*program, "run", str(config), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(process, reached):
    """Waits for what a process leaves behind; fails with its words where it ends before."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = ("--set", "schedule.steps=60", "--set", "run.save-every=7")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    process = started(config, out, *LONG)
    assert process.wait(PATIENCE_S) == 0, process.communicate()[1]
    return out


def same(one, other):
    (weights, state), (theirs, their_state) = checkpoint.read(one / "last.pt"), checkpoint.read(other / "last.pt")
    return (
        state.step == their_state.step
        and all(np.array_equal(weights[n], theirs[n]) for n in theirs)
        and all((t == state.modules[n]).all() for n, t in their_state.modules.items())
    )


@pytest.mark.slow  # processes that load PyTorch
def test_killed_twice_it_ends_with_the_losses_and_the_bits_of_one_that_was_not(config, undisturbed, tmp_path):
    out = tmp_path / "run"
    for lines in (4, 33):
        process = started(config, out, *LONG)
        until(process, lambda lines=lines: len(progress.read(out)) >= lines)
        process.kill()
        process.wait()
    process = started(config, out, *LONG)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "goes on from" in err, err
    assert told(out) == told(undisturbed)
    assert same(out, undisturbed)


@pytest.mark.slow
def test_asked_to_stop_it_saves_the_step_at_hand_and_says_so(config, undisturbed, tmp_path):
    process = started(config, tmp_path, *LONG, "--set", "run.save-every=1000")
    until(process, lambda: len(progress.read(tmp_path)) >= 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "stops behind this step" in err
    step = checkpoint.read(tmp_path / "last.pt")[1].step
    assert step == len(progress.read(tmp_path)) >= 5
    process = started(config, tmp_path, *LONG)
    assert process.wait(PATIENCE_S) == 0, process.communicate()[1]
    assert told(tmp_path) == told(undisturbed) and same(tmp_path, undisturbed)


@pytest.mark.slow
def test_torchrun_s_ranks_train_one_model_and_print_one_result(config, undisturbed, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    process = started(config, tmp_path, *LONG, "--json", launcher=launcher)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["ranks"] == 2 and result["complete"]
    ours, theirs = told(tmp_path), told(undisturbed)
    assert [x["step"] for x in ours] == [x["step"] for x in theirs]
    # Rounding in another order grows from step to step: in float64 they are held together for longer elsewhere.
    np.testing.assert_allclose([x["loss"] for x in ours[:10]], [x["loss"] for x in theirs[:10]], rtol=1e-3)


def test_ranks_that_were_started_by_hand_are_told_how(config, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert ended(app, ["run", str(config), "--out", str(tmp_path)]) == 2
    assert "start the ranks with torchrun" in capfd.readouterr().err
    monkeypatch.setenv("RANK", "2")
    assert ended(app, ["run", str(config), "--out", str(tmp_path)]) == 2
    assert "RANK=2 of WORLD_SIZE=2" in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert ended(app, ["run", str(config), "--out", str(tmp_path)]) == 2
    assert "WORLD_SIZE=many: torchrun sets it to a whole number" in capfd.readouterr().err


def test_its_help_says_how_several_ranks_are_started(capfd):
    assert ended(app, ["run", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "torchrun --nproc-per-node" in text and "--no-python tessera-beam train run" in text
