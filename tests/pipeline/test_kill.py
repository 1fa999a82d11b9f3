"""A worker that dies in the middle, and one that comes when the disk is full."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import contents

from pipeline.cli import run

PROGRAM = [sys.executable, "-c", "from pipeline.cli import main; main()"]


TILE = "33TUL"  # of which four blocks of 256 px hold some of the island


def embed(world, out: Path, *more: str) -> list[str]:
    where = ["--out", str(out), "--bbox", world.bbox, "--tiles", TILE, "--block", "256"]
    return ["embed", world.inv, "--model", world.model, *where, *more]


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(embed(world, out)) == 0
    return contents(out)


def wait_for(out: Path, receipts: int, process: subprocess.Popen) -> None:
    """Until so many receipts are there, by looking at the folder; never longer than the process lives."""
    tick = threading.Event()
    while process.poll() is None and len(list(out.glob("_runs/*/blocks/*.json"))) < receipts:
        tick.wait(0.02)


@pytest.mark.slow  # tests/torture kills in every run
@pytest.mark.parametrize("receipts", [1, 3])
def test_after_kill_9_the_next_run_finishes_with_the_bytes_of_an_undisturbed_one(
    world, tmp_path, undisturbed, receipts, capfd
):
    out = tmp_path / "out"
    process = subprocess.Popen(PROGRAM + embed(world, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(out, receipts, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was to die in the middle, not to end before"
    before = len(list(out.glob("_runs/*/blocks/*.json")))

    assert run([*embed(world, out), "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert 0 < summary["totals"]["blocks_done"] <= summary["totals"]["blocks"] - before + 1
    assert contents(out) == undisturbed
    assert not (out / ".parts").exists(), "nothing half-written stays"


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_a_word_and_the_next_one_goes_on(
    world, tmp_path, undisturbed, monkeypatch, capfd
):
    out = tmp_path / "out"
    from transforms import storage

    real, left = storage.os.fsync, [40]

    def fsync(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    assert run(embed(world, out)) == 1
    said = capfd.readouterr().err
    assert "No space left on device" in said and "Traceback" not in said
    monkeypatch.setattr(storage.os, "fsync", real)
    assert run(embed(world, out)) == 0
    assert contents(out) == undisturbed


def workers_of(pid: int) -> list[int]:
    """Beam's worker processes below a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    below, found = {pid}, []
    for _ in range(4):
        below |= {child for child, parent in parents.items() if parent in below}
    for child in sorted(below - {pid}):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        if b"apache_beam.runners.worker.sdk_worker_main" in words:
            found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_run_goes_on_when_one_of_its_workers_is_killed(world, tmp_path, undisturbed):
    out = tmp_path / "out"
    command = [*PROGRAM, *embed(world, out, "--workers", "2")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(out, 1, process)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    assert "a worker process has ended (killed, or out of memory): going on with what is missing" in said
    assert contents(out) == undisturbed
    assert not [p for p in out.glob("_work/**/*") if p.is_file()]
