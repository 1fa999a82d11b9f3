"""Portable engines: any service of Beam's job API, with workers in this process, a pool or by a command."""

import dataclasses
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import ClassVar

from model.errors import BadInput
from pipeline.engines.base import NOTHING_STAGED, Engine, Job, check_at_least, setting
from pipeline.engines.beam_options import FLINK_SERVER, check_beam_args
from pipeline.engines.images import check_image
from pipeline.engines.local import said_by

ENVIRONMENTS = ("loopback", "external", "process", "docker")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
# What a job says whose worker went away: Prism (facts, checked 2.1.4), the Java harness of Flink and others.
LOST = ("SDK worker disconnected", "SDK harness has terminated", "Channel closed prematurely")


def check_address(engine: Engine, name: str, value: str) -> None:
    """Raises BadInput for what is not HOST:PORT; a list of pools ends Prism in a panic (facts, checked 2.1.1)."""
    match = _ADDRESS.fullmatch(value)
    if match is None or not 0 < int(match[2]) < 65536:
        raise BadInput(
            f"engine {engine.name}: {name} = {value!r}: one HOST:PORT is wanted, for example localhost:50000"
        )


@dataclasses.dataclass(frozen=True)
class Environment(Engine):
    """What portable engines share: where the workers' code runs."""

    environment: str = setting("loopback", f"where workers run: {', '.join(ENVIRONMENTS)}")
    worker_pool: str = setting("", "HOST:PORT of a worker pool, for environment external")
    command: str = setting("", "program that starts a worker, for environment process; our own by default")
    image: str = setting("", "container image, for environment docker")
    threads: int = setting(1, "blocks that a worker process works on at once")
    start_minutes: float = setting(15.0, "minutes to wait for the first sign of a worker")
    patience_minutes: float = setting(180.0, "minutes without any block's end after which the run counts as hanging")

    @property
    def blocks_at_once(self) -> int:
        return self.threads

    @property
    def start_min(self) -> float:  # type: ignore[override]
        return self.start_minutes

    @property
    def patience_min(self) -> float:  # type: ignore[override]
        return self.patience_minutes

    def check(self, job: Job) -> None:
        if self.environment not in ENVIRONMENTS:
            raise BadInput(
                f"engine {self.name}: environment = {self.environment!r}: it must be one of {', '.join(ENVIRONMENTS)}"
            )
        for name, place in (("worker-pool", "external"), ("command", "process"), ("image", "docker")):
            if getattr(self, name.replace("-", "_")) and self.environment != place:
                raise BadInput(f"engine {self.name}: {name} is for environment {place}, not {self.environment}")
        if self.environment == "external":
            if not self.worker_pool:
                raise BadInput(
                    f"engine {self.name}: environment external needs worker-pool = HOST:PORT, where "
                    "`python -m pipeline.engines.worker --pool PORT` or our image with --worker_pool listens"
                )
            check_address(self, "worker-pool", self.worker_pool)
        if self.environment == "docker":
            check_image(self.name, self.image, job.device)
        if self.environment == "process":
            self._program()
        check_at_least(self, 1, "threads")
        if self.start_minutes <= 0 or self.patience_minutes <= 0:
            raise BadInput(f"engine {self.name}: start-minutes and patience-minutes must be more than 0")
        check_beam_args(job.beam_args, self.flags(job), FLINK_SERVER)

    def _program(self) -> str:
        """The command of a worker process.

        Raises:
          BadInput: there is no such program: a job whose worker ends at once would wait for ever.
        """
        program = self.command or worker_program()
        found = shutil.which(shlex.split(program)[0]) if program else None
        if found is None:
            raise BadInput(f"engine {self.name}: command = {program!r}: there is no such program on this machine")
        return program

    def job_flags(self, endpoint: str, job: Job) -> list[str]:
        """Beam's options for a job that is handed to a job service."""
        address = ["--runner=PortableRunner", f"--job_endpoint={endpoint}", f"--job_name={job.name}"]
        return [*address, *self.environment_flags()]

    def environment_flags(self) -> list[str]:
        """Which environment the job names, as Beam's options have it."""
        flags = [*NOTHING_STAGED, f"--environment_type={self.environment.upper()}"]
        if self.environment == "external":
            flags.append(f"--environment_config={self.worker_pool}")
        if self.environment == "process":
            # The worker is found and finds its modules as this process does.
            inherited = {k: os.environ[k] for k in ("PATH", "PYTHONPATH", "HOME") if k in os.environ}
            flags.append(f"--environment_config={json.dumps({'command': self._program(), 'env': inherited})}")
        if self.environment == "docker":
            flags.append(f"--environment_config={self.image}")
        return flags

    def lost(self, error: BaseException) -> bool:
        return any(said_by(error, words) for words in LOST)


def worker_program() -> str:
    """Our own starter of a worker (pipeline/engines/worker.py), "" where the package has no console scripts here."""
    beside = Path(shutil.which("tessera-beam-worker") or "")
    return str(beside) if beside.name else ""


@dataclasses.dataclass(frozen=True)
class Portable(Environment):
    """Any job service: Beam's own, another team's, a Spark one. Nothing is started but the job."""

    name: ClassVar[str] = "portable"
    endpoint: str = setting("", "HOST:PORT of the job service", needed=True)

    def check(self, job: Job) -> None:
        check_address(self, "endpoint", self.endpoint)
        super().check(job)

    @property
    def elsewhere(self) -> bool:
        return self.environment in ("external", "docker")

    def flags(self, job: Job) -> list[str]:
        return self.job_flags(self.endpoint, job)

    def starts(self) -> str:
        return f"a job at {self.endpoint}, workers: {self.environment} {self.worker_pool or self.image}".rstrip()
