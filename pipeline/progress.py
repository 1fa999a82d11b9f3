"""Progress: how far a run is, as a bar on a terminal or a line now and then in a log."""

import abc
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import rich.console
import rich.progress

from transforms.storage import Store

LOOK_S = 0.5  # between looks, on a terminal
LINE_S = 15.0  # between lines of a log
SELDOM = 20.0  # times as long as a look takes, at least, lie between looks


class Watch(abc.ABC):
    """Looks at work now and then, from a thread that stops with the `with` block; says what `line` and `shown` give."""

    def __init__(self, total: int, say: Callable[[str], None], bar: bool) -> None:
        self.total, self._say, self._bar = total, say, bar
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw if bar else self._log, name="progress", daemon=True)

    @abc.abstractmethod
    def line(self, seconds: float) -> str:
        """A line of the log, `seconds` after the work began."""

    @abc.abstractmethod
    def shown(self) -> tuple[int, str]:
        """What the bar shows: how many of all are done, and words."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _log(self) -> None:
        begun, pause_s = time.monotonic(), LINE_S
        while not self._over.wait(pause_s):
            looked = time.monotonic()
            self._say(self.line(looked - begun))
            pause_s = max(LINE_S, SELDOM * (time.monotonic() - looked))

    def _draw(self) -> None:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
            task = bar.add_task(self.shown()[1], total=self.total)
            over, pause_s = False, LOOK_S
            while not over:
                over = self._over.wait(pause_s)
                begun = time.monotonic()
                done, words = self.shown()
                bar.update(task, completed=done, description=words)
                # A planet has hundreds of pages of records in a bucket: a look that takes long is taken seldom.
                pause_s = max(LOOK_S, SELDOM * (time.monotonic() - begun))


class Progress(Watch):
    """Blocks of a run, from the records that they leave on the store: the workers' own, wherever these run."""

    def __init__(self, store: Store, run: str, blocks: int, say: Callable[[str], None], bar: bool) -> None:
        super().__init__(blocks, say, bar)
        self._store, self._run = store, run

    def line(self, seconds: float) -> str:
        done, failed = self._counts()
        return f"{seconds:5.0f} s  {done} of {self.total} blocks, {failed} failed"

    def shown(self) -> tuple[int, str]:
        done, failed = self._counts()
        return done, f"blocks, {failed} failed" if failed else "blocks"

    def _counts(self) -> tuple[int, int]:
        done = len(self._store.names(f"_runs/{self._run}/blocks"))
        failed = len(self._store.names(f"_runs/{self._run}/failed")) if done else 0
        return done, failed
