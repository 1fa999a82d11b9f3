"""Prism: Beam's portable runner for one machine, a program of its own, started anew for every run."""

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from model.errors import BadInput
from pipeline.engines.base import Job, setting
from pipeline.engines.local import patience_shared
from pipeline.engines.portable import Environment

READY_S = 30.0  # until Prism listens; it takes a tenth of a second


@dataclasses.dataclass(frozen=True)
class Prism(Environment):
    """A Prism that ends with the run: one that has run other jobs keeps their data (facts, checked 2.1.5).

    It neither retries nor takes resource hints, and starts one worker for an environment whatever it is asked.
    """

    name: ClassVar[str] = "prism"
    prism: str = setting("", "the prism program; looked for in PATH by default")

    def program(self) -> str:
        """Path of the program.

        Raises:
          BadInput: it is not there. Beam would fetch one over the network in the middle of a run.
        """
        found = shutil.which(self.prism or "prism")
        if found is None:
            raise BadInput(
                f"--runner prism: there is no program {self.prism or 'prism in PATH'}: `make prism` builds it, or "
                "`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0`; give its path with --set prism=PATH"
            )
        return found

    def check(self, job: Job) -> None:
        self.program()
        if self.environment == "docker":
            raise BadInput("engine prism: environment docker was never tried here: use loopback, external or process")
        super().check(job)

    def flags(self, job: Job, port: int = 0) -> list[str]:
        return self.job_flags(f"localhost:{port or '(a free port)'}", job)

    def starts(self) -> str:
        return f"{self.program()}, and one worker: {self.environment} {self.worker_pool}".rstrip()

    @contextlib.contextmanager
    def at_work(self, job: Job, log: Path) -> Iterator[list[str]]:
        port = _free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.program(), "--job_port", str(port), "--serve_http=false", "--log_kind", "text"]
        with log.open("ab") as out, patience_shared(1):
            served = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            try:
                _wait_for(port, served, log)
                yield [*self.flags(job, port), *job.beam_args]
            finally:
                served.terminate()
                try:
                    served.wait(10)
                except subprocess.TimeoutExpired:
                    served.kill()
                    served.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_for(port: int, served: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the program listens. Raises BadInput where it ends instead, or does not within READY_S."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if served.poll() is not None:
            raise BadInput(f"prism ended at once with {served.returncode}: see {log}")
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.05)
    raise BadInput(f"prism does not listen on port {port} after {READY_S:.0f} s: see {log}")
