"""The local engine: Beam's FnApiRunner on this machine, in one process or several."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from model.errors import BadInput
from pipeline.engines.base import Engine, Job, setting
from pipeline.engines.beam_options import check_beam_args
from transforms.http import WORKERS_VARIABLE

# Named outright: Beam's DirectRunner picks another runner from release to release.
FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Local(Engine):
    """This machine: one process, or `workers` of them.

    One process runs one bundle at a time, so that reading and encoding overlap inside a block, not between blocks.
    Beam's `multi_threading` mode is not offered: it takes memory without bound from some thousand elements on.
    """

    name: ClassVar[str] = "local"
    workers: int = setting(1, "processes on this machine")

    @property
    def processes(self) -> int:
        return self.workers

    def check(self, job: Job) -> None:
        if self.workers < 1:
            raise BadInput(f"--workers {self.workers}: it must be 1 or more")
        check_beam_args(job.beam_args, self.flags(job))

    def flags(self, job: Job) -> list[str]:
        mode = "in_memory" if self.workers == 1 else "multi_processing"
        return [
            f"--runner={FN_API_RUNNER}",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={self.workers}",
        ]

    def starts(self) -> str:
        return "one process" if self.workers == 1 else f"{self.workers} processes on this machine"

    def lost(self, error: BaseException) -> bool:
        return self.workers > 1 and said_by(error, "Channel closed prematurely")  # Beam 2.77 (facts, checked 2.2)

    @contextlib.contextmanager
    def at_work(self, job: Job, log: Path) -> Iterator[list[str]]:
        with patience_shared(self.workers), chatter_to(log) if self.workers > 1 else contextlib.nullcontext():
            yield [*self.flags(job), *job.beam_args]


def said_by(error: BaseException, words: str) -> bool:
    """Whether an error, or one that it came from, says these words."""
    found: BaseException | None = error
    while found is not None:
        if words in str(found):
            return True
        found = found.__cause__ or found.__context__
    return False


@contextlib.contextmanager
def patience_shared(processes: int) -> Iterator[None]:
    """What worker processes start with: their share of each host's patience.

    A run over several machines says how many processes read in all by setting the variable itself.
    """
    if WORKERS_VARIABLE in os.environ:
        yield
        return
    os.environ[WORKERS_VARIABLE] = str(processes)
    try:
        yield
    finally:
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
