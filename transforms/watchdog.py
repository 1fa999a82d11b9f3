"""The watchdog: a block in which nothing happens any more ends its process, so that the run can go on without it."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

VARIABLE = "TESSERA_DEADLINE_S"
# Without a strip read or a batch encoded. The slowest step that is healthy is the reading of one strip: 110 scenes of a
# 2048 px block from a host that gives each of them 60 s (http's own time limit) and 16 at once take 7 minutes.
DEADLINE_S = 3600.0
EXIT_CODE = 1  # as any crash: the same command again goes on


class Watch:
    """Counts down to the end of the process; every `beat` begins it anew."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._last = time.monotonic()

    def beat(self) -> None:
        """Something was done. Safe to call from any thread."""
        self._last = time.monotonic()

    def left_s(self) -> float:
        return self._last + self.deadline_s - time.monotonic()


def deadline_s() -> float:
    """Seconds without a sign of life after which a block is given up; from the environment where that says so."""
    try:
        value = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        return DEADLINE_S
    return value if value > 0 else DEADLINE_S


@contextlib.contextmanager
def watched(what: str, on_hang: Callable[[], None], limit_s: float | None = None) -> Iterator[Watch]:
    """Ends the process when the body neither ends nor gives a sign of life in time.

    A thread cannot be stopped from outside, and one that hangs in a library holds its file, its memory and its place
    in the pool: only the end of the process gives them back. The stacks of all threads go to stderr before it.

    Args:
      what: the block, for the message. on_hang: called first, for a record; its errors are passed over.
      limit_s: between two beats; `deadline_s()` where None is given.
    """
    watch = Watch(deadline_s() if limit_s is None else limit_s)
    over = threading.Event()

    def look() -> None:
        while not over.wait(max(0.05, watch.left_s())):
            if watch.left_s() <= 0:
                with contextlib.suppress(Exception):
                    on_hang()
                sys.stderr.write(
                    f"{what}: nothing has happened for {watch.deadline_s:,.0f} s ({VARIABLE}); this process ends, and "
                    "the same command again goes on\n"
                )
                faulthandler.dump_traceback()
                sys.stderr.flush()
                os._exit(EXIT_CODE)

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
