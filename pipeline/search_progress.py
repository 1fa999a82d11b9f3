"""Search progress: how far an inventory build is, as a bar on a terminal or a line now and then in a log."""

import dataclasses
import threading
import time
from collections.abc import Callable
from types import TracebackType

import rich.console
import rich.progress

from pipeline.progress import LINE_S, LOOK_S


@dataclasses.dataclass(frozen=True)
class Searched:
    """How far a build is.

    Attributes:
      done, tiles: tiles that are done, of all. kept: those of them that an earlier build had done.
      tile: the last one. scenes: in all done tiles.
    """

    done: int
    tiles: int
    kept: int
    tile: str
    scenes: int


def line_of(state: Searched, seconds: float) -> str:
    """A line of the log, `seconds` after the build began."""
    said = f"{seconds:5.0f} s  {state.done} of {state.tiles} tiles, {state.scenes:,} scenes"
    now = state.done - state.kept
    if not now or not seconds:
        return said
    left_s = (state.tiles - state.done) * seconds / now
    return f"{said}, {60 * now / seconds:.1f} tiles a minute, about {_duration(left_s)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class SearchProgress:
    """Shows what it is called with; stops with the `with` block."""

    def __init__(self, tiles: int, say: Callable[[str], None], bar: bool) -> None:
        self._say, self._bar = say, bar and tiles > 1
        self._state = Searched(0, tiles, 0, "", 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __call__(self, state: Searched) -> None:
        self._state = state

    def __enter__(self) -> "SearchProgress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._bar:
            self._draw()
            return
        begun = time.monotonic()
        while not self._over.wait(LINE_S):
            self._say(line_of(self._state, time.monotonic() - begun))

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
            task = bar.add_task("tiles", total=self._state.tiles)
            over = False
            while not over:
                over = self._over.wait(LOOK_S)
                bar.update(task, completed=self._state.done, description=f"tiles, {self._state.scenes:,} scenes")
