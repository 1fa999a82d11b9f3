"""Processes that share a batch over gloo, for tests: a function runs on every rank and leaves its results in a file."""

import importlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

HANG_S = 240  # no test measures this: it is when a rank that waits for another is given up


def on_ranks(function, folder: Path, world: int = 2) -> list:
    """What `function` (of a test module, without arguments) returns on each rank, in their order.

    Fails with the words of the ranks where one of them fails.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, __file__, function.__module__, function.__name__, str(folder), str(world)]
    logs = [folder / f"{r}.log" for r in range(world)]
    started = []
    try:
        for r, log in enumerate(logs):
            with log.open("wb") as out:
                started.append(subprocess.Popen([*command, str(r)], stdout=out, stderr=out, env=environment))
        codes = [process.wait(HANG_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"{r}.pt") for r in range(world)]


def main(module: str, function: str, folder: str, world: str, rank: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'meeting'}",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=HANG_S),
    )
    result = getattr(importlib.import_module(module), function)()
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
