"""The nursery: a process with everything imported, whose forks are the program: no run waits for its imports."""

import contextlib
import dataclasses
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0  # of any run here, which take seconds: what is not over by then hangs
LOOK_S = 0.01  # between two looks at a child
RETURNED_NOTHING = 70  # exit code of a child whose program raised what it should not have (EX_SOFTWARE)


@dataclasses.dataclass
class Child:
    """A run of the program in a process group of its own.

    Attributes:
      pid: of the process, which is its group's too. log: its stdout and stderr. began: `time.monotonic()`.
    """

    pid: int
    log: Path
    began: float
    code: int | None = None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Nursery:
    """Starts runs and hears of their ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *_outer()])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True,
        )  # fmt: skip

    def ask(self, **what: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the nursery has died; what it said stands above")
        return json.loads(answer)

    def start(self, argv: list[str], hooks: dict[str, Any] | None = None, call: str = "", **env: str) -> Child:
        """Begins a run of the program, or of "module:function" with `argv` as its arguments.

        hooks: what `hooks.install` plants into it; env: variables that it gets more.
        """
        self._count += 1
        log = self._folder / f"{self._count:05d}.log"
        pid = self.ask(do="start", argv=argv, hooks=hooks or {}, call=call, env=env, log=str(log))
        return Child(pid, log, time.monotonic())

    def poll(self, child: Child) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        if child.code is None:
            child.code = self.ask(do="poll", pid=child.pid)
        return child.code

    def wait(self, child: Child, limit_s: float = LIMIT_S) -> int | None:
        """The exit code; None where it had to be killed at the limit: it hung."""
        while self.poll(child) is None:
            if time.monotonic() - child.began > limit_s:
                child.kill()
                while self.poll(child) is None:
                    time.sleep(LOOK_S)
                child.code = None
                return None
            time.sleep(LOOK_S)
        return child.code

    def run(self, argv: list[str], hooks: dict[str, Any] | None = None, **env: str) -> Child:
        """A run to its end; `code` is None where it hung."""
        child = self.start(argv, hooks, **env)
        self.wait(child)
        return child

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _outer() -> list[str]:
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    found = Nursery(folder)
    try:
        yield found
    finally:
        found.close()


def _import_all() -> None:
    import google.cloud.storage  # noqa: F401
    import onnxruntime  # noqa: F401

    # Of the product all that a run or a mutant's judge takes; what is imported here costs a fork nothing.
    import pipeline.clean
    import pipeline.embed  # noqa: F401
    from pipeline.cli import run

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        run(["embed", "--help"])  # typer makes its commands at the first call


def _warm(bbox: str, block_px: int, revisions: dict[str, list[str]], headers: str) -> None:
    """Pure functions that take a second a tile, computed once for all forks.

    headers: file of what `picture.pyramid_header` gave in a run, by its arguments.
    """
    from transforms import picture
    from transforms.plans import tasks_of
    from transforms.regions import clip_of, region_from_bbox

    _HEADERS.update(pickle.loads(Path(headers).read_bytes()))
    if not hasattr(picture.pyramid_header, "remembers"):
        picture.pyramid_header = _remembering(picture.pyramid_header)
    for tile, known in revisions.items():
        clip = clip_of(region_from_bbox(bbox), tile)
        for revision in ("", *known):
            tasks_of(tile, revision, clip, block_px)


_HEADERS: dict[str, Any] = {}


def _remembering(real: Any) -> Any:
    def remembered(*args: Any) -> Any:
        if repr(args) not in _HEADERS:
            _HEADERS[repr(args)] = real(*args)
        return _HEADERS[repr(args)]

    remembered.remembers = True  # type: ignore[attr-defined]
    return remembered


def _child(job: dict[str, Any]) -> int:
    from torture import hooks

    os.setsid()
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(target, number)
    os.environ.update(job["env"])
    hooks.install(job["hooks"])
    if job["call"]:
        module, _, name = job["call"].partition(":")
        return int(getattr(importlib.import_module(module), name)(*job["argv"]) or 0)
    from pipeline.cli import run, stop_politely

    stop_politely()
    code = run(job["argv"])
    hooks.ended()
    return code


def _serve() -> None:
    _import_all()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        answer: Any = None
        if job["do"] == "start":
            answer = os.fork()
            if not answer:
                code = RETURNED_NOTHING
                try:
                    code = _child(job)
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(Exception):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    os._exit(code)  # not the nursery's own exit handlers; what threads wait for is nobody's business
        elif job["do"] == "poll":
            pid, status = os.waitpid(job["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif job["do"] == "warm":
            _warm(job["bbox"], job["block_px"], job["revisions"], job["headers"])
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve()
