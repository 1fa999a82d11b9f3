"""Progress: how far a run is, read from the records that its blocks leave on the store."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

import rich.console
import rich.progress

from transforms.storage import Store

LOOK_S = 0.5  # between looks at the store, on a terminal
LINE_S = 15.0  # between lines of a log


class Progress:
    """A bar on a terminal, a line now and then in a log; stops with the `with` block.

    The records are the workers' own, so that it does not matter where these run.
    """

    def __init__(self, store: Store, run: str, blocks: int, say: Callable[[str], None], bar: bool) -> None:
        self._store, self._run, self._blocks, self._say, self._bar = store, run, blocks, say, bar
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _counts(self) -> tuple[int, int]:
        done = len(self._store.names(f"_runs/{self._run}/blocks"))
        failed = len(self._store.names(f"_runs/{self._run}/failed")) if done else 0
        return done, failed

    def _watch(self) -> None:
        if self._bar:
            self._draw()
            return
        begun = time.monotonic()
        while not self._over.wait(LINE_S):
            done, failed = self._counts()
            self._say(f"{time.monotonic() - begun:5.0f} s  {done} of {self._blocks} blocks, {failed} failed")

    def _draw(self) -> None:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        console = rich.console.Console(stderr=True)
        with rich.progress.Progress(*columns, console=console) as bar:
            task = bar.add_task("blocks", total=self._blocks)
            over = False
            while not over:
                over = self._over.wait(LOOK_S)
                done, failed = self._counts()
                bar.update(task, completed=done, description=f"blocks, {failed} failed" if failed else "blocks")
