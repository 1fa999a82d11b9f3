"""Search progress: how far an inventory build is."""

import dataclasses
from collections.abc import Callable

from pipeline.progress import Watch


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


class SearchProgress(Watch):
    """Shows what it is called with; a single tile has no bar."""

    def __init__(self, tiles: int, say: Callable[[str], None], bar: bool) -> None:
        super().__init__(tiles, say, bar and tiles > 1)
        self._state = Searched(0, tiles, 0, "", 0)

    def __call__(self, state: Searched) -> None:
        self._state = state

    def line(self, seconds: float) -> str:
        return line_of(self._state, seconds)

    def shown(self) -> tuple[int, str]:
        return self._state.done, f"tiles, {self._state.scenes:,} scenes"
