"""The main job on Prism: workers in this process, in a pool and by a command; workers that die or never come."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import contents
from portable import job_service, prism_program, worker_pool, worker_program

from pipeline.cli import run

PRISM = prism_program()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PRISM is None, reason="Prism is not here: make prism-program builds it (with Go)"),
]
TILE = "33TUL"  # of which four blocks of 256 px hold some of the island
PROGRAM = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def embed(world, out: Path, *more: str) -> list[str]:
    where = ["--out", str(out), "--bbox", world.bbox, "--tiles", TILE, "--block", "256"]
    return ["embed", world.inv, "--model", world.model, *where, *more]


def on_prism(world, out: Path, *settings: str) -> list[str]:
    return embed(
        world, out, "--runner", "prism", "--set", f"prism={PRISM}", *(w for s in settings for w in ("--set", s))
    )


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(embed(world, out)) == 0
    return contents(out)


@pytest.mark.parametrize("kind", ["loopback", "external", "process"])
def test_prism_gives_the_bytes_of_the_local_run(world, tmp_path, undisturbed, kind):
    out = tmp_path / "out"
    if kind == "external":
        with worker_pool(tmp_path / "pool.log") as address:
            assert run(on_prism(world, out, "environment=external", f"worker-pool={address}")) == 0
    else:
        command = [f"command={worker_program()}"] if kind == "process" else []
        assert run(on_prism(world, out, f"environment={kind}", *command)) == 0
    assert contents(out) == undisturbed
    workers = list(out.glob("_runs/*/workers/*.json"))
    assert len(workers) == 1, "Prism starts one worker for an environment"
    assert workers[0].stem.endswith(f"-{os.getpid()}") == (kind == "loopback")


def test_a_worker_that_is_killed_leaves_a_run_that_goes_on(world, tmp_path, undisturbed):
    out, tick = tmp_path / "out", threading.Event()
    with worker_pool(tmp_path / "pool.log") as address:
        command = on_prism(world, out, "environment=external", f"worker-pool={address}")
        process = subprocess.Popen(PROGRAM + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(out.glob("_runs/*/blocks/*.json")):
            tick.wait(0.02)
        (worker,) = out.glob("_runs/*/workers/*.json")
        os.kill(int(worker.stem.rpartition("-")[2]), signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "a worker process has ended" in said
    assert contents(out) == undisturbed


def test_a_worker_that_never_comes_ends_the_run_with_a_sentence(world, tmp_path, capfd):
    out = tmp_path / "out"
    code = run(on_prism(world, out, "environment=process", "command=/bin/false", "start-minutes=0.2"))
    assert code == 1
    assert "no worker has given a sign of life for 0.2 minutes on prism" in capfd.readouterr().err


def test_the_counters_of_a_run_come_back_over_the_portable_api(world, tmp_path, capfd):
    assert run([*on_prism(world, tmp_path / "out"), "--json"]) == 0
    totals = json.loads(capfd.readouterr().out)["totals"]
    assert totals["blocks_done"] == 4 and totals["tiles_published"] == 1 and totals["pixels"] > 0


def test_a_job_that_nobody_waits_for_leaves_its_own_record(world, tmp_path, undisturbed):
    """The program ends when the job is handed over; what it would have written at the end, the job does."""
    out, tick = tmp_path / "out", threading.Event()
    with worker_pool(tmp_path / "pool.log") as pool, job_service(PRISM, tmp_path / "prism.log") as service:
        settings = [f"endpoint={service}", "environment=external", f"worker-pool={pool}"]
        command = embed(world, out, "--runner", "portable", *(w for s in settings for w in ("--set", s)))
        said = subprocess.run(
            [*PROGRAM, *command, "--device", "cpu", "--no-wait", "--json"], capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        job = json.loads(said.stdout)
        end = out / "_runs" / job["run"] / "run.json"
        deadline = time.monotonic() + 300
        while not end.exists() and time.monotonic() < deadline:
            tick.wait(0.1)
    assert job["runner"] == "portable" and job["job"]
    record = json.loads(end.read_text())
    assert record["totals"]["tiles_published"] == 1 and record["totals"]["blocks_done"] == 4
    assert contents(out) == undisturbed
