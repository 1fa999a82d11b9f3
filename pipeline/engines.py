"""Engines: what runs the graph, and the Beam options that make it do so."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import BadInput
from transforms.http import WORKERS_VARIABLE

# Named outright: Beam's DirectRunner picks another runner from release to release.
FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Local:
    """This machine: one process, or `workers` of them.

    One process runs one bundle at a time, so that reading and encoding overlap inside a block, not between blocks.
    Beam's `multi_threading` mode is not offered: it takes memory without bound from some thousand elements on.
    """

    workers: int = 1

    def flags(self, extra: Sequence[str] = ()) -> list[str]:
        """Beam's options as a command line has them."""
        mode = "in_memory" if self.workers == 1 else "multi_processing"
        return [
            f"--runner={FN_API_RUNNER}",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={self.workers}",
            *extra,
        ]

    def options(self, extra: Sequence[str] = ()) -> PipelineOptions:
        return PipelineOptions(self.flags(extra))


def lost_worker(error: BaseException) -> bool:
    """Whether a run failed since a worker process ended: Beam 2.77 says it of its channels (facts, checked)."""
    found: BaseException | None = error
    while found is not None:
        if "Channel closed prematurely" in str(found):
            return True
        found = found.__cause__ or found.__context__
    return False


@contextlib.contextmanager
def at_work(engine: Local, log: Path) -> Iterator[None]:
    """What worker processes start with: their share of each host's patience, and where their chatter goes.

    A run over several machines says how many processes read in all by setting the variable itself.
    """
    said = WORKERS_VARIABLE in os.environ
    if not said:
        os.environ[WORKERS_VARIABLE] = str(engine.workers)
    try:
        with chatter_to(log) if engine.workers > 1 else contextlib.nullcontext():
            yield
    finally:
        if not said:
            del os.environ[WORKERS_VARIABLE]


@contextlib.contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Sends what worker processes write to the terminal into a file; our own lines still reach the person.

    Beam starts workers with the stderr that it has itself, and they tell it about every channel that they open.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, sys_stderr = os.dup(2), sys.stderr
    with log.open("ab") as file, os.fdopen(ours, "w", buffering=1) as terminal:
        sys_stderr.flush()
        os.dup2(file.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            terminal.flush()
            sys.stderr = sys_stderr
            os.dup2(ours, 2)


def engine_of(runner: str, workers: int) -> Local:
    """The engine of that name.

    Raises:
      BadInput: a runner that is not offered, or a worker count under 1.
    """
    if workers < 1:
        raise BadInput(f"--workers {workers}: it must be 1 or more")
    if runner != "local":
        raise BadInput(f"--runner {runner}: this release runs on 'local' (--workers N for N processes)")
    return Local(workers)
