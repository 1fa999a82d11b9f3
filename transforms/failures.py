"""Failures: why a block was not made, what that means for the run, and what a person does about it."""

import collections
import dataclasses
import errno
import threading
from collections.abc import Mapping

from transforms.read import ReadError, plain
from transforms.storage import StoreError

# Causes, as receipts and failures.parquet name them.
TRANSIENT = "transient"  # a host that did not answer as it should, after all retries
INPUT = "input"  # a file that is broken, missing or another one than its item says
KILLED = "killed"  # the block ended its worker twice
HUNG = "hung"  # twice not done at its deadline
MEMORY = "memory"
DISK = "disk"  # no room, or no right to write, on this machine's disk
STORE = "store"  # the output's store does not do what it is asked
PROGRAM = "program"  # anything else: a fault of ours until shown otherwise
CAUSES = (TRANSIENT, INPUT, KILLED, HUNG, MEMORY, DISK, STORE, PROGRAM)

# Blocks that fail for these fail wherever they are tried: the run stops at the first one.
STOPPING = frozenset({DISK, STORE})
# With fewer failed blocks than this nothing is said about the others; from here on a run most of whose blocks fail, and
# all for one cause, is not going to end well (a wrong token, a host that is down, a bug).
MANY = 20

# What a receipt says of a block whose attempts all ended their process.
TWICE = {
    KILLED: "this block ended its worker twice (killed, or out of memory); run embed again to try it once more",
    HUNG: "nothing happened in this block any more and its worker was ended, twice; run embed again to try once more",
}

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a block failed. `scene`, `band`: of the file, "" where none is at fault. `reason`: in words."""

    cause: str
    reason: str
    scene: str = ""
    band: str = ""


class Tally:
    """What became of the blocks that this process made. Threads add to it; each process of a fleet has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: collections.Counter[str] = collections.Counter()
        self._done = 0

    def add(self, cause: str) -> str:
        """Counts a block, by its cause or "" where it was made. Returns why the run should stop, or ""."""
        with self._lock:
            if not cause:
                self._done += 1
                return ""
            self._failed[cause] += 1
            return stop_reason(self._failed, self._done)


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of a block stands for. Its words hold no query string and no token."""
    if isinstance(error, ReadError):
        # A status of the host or a broken connection outlived its retries; anything else is in the file. 404 and 410
        # say that the file is gone, and another try finds no other.
        gone = error.status in (404, 410)
        transient = error.kind in ("status", "reset", "short", "timeout") and not gone
        return Failure(TRANSIENT if transient else INPUT, error.reason, error.scene, error.band)
    if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
        return Failure(MEMORY, plain(str(error)) or "out of memory")
    if isinstance(error, StoreError):
        return Failure(STORE, plain(str(error)))
    if isinstance(error, OSError) and error.errno in _NO_ROOM | _DENIED:
        return Failure(DISK, plain(str(error)))
    return Failure(PROGRAM, plain(f"{type(error).__name__}: {error}"))


def cure(cause: str, scene: str = "", band: str = "") -> str:
    """The next command, or what to do before it."""
    if cause == INPUT and scene:
        what = f"{scene}:{band}" if band else scene
        return f"tessera-beam inventory amend INV --drop {what} --reason '..' --out INV2, then embed with INV2"
    return {
        TRANSIENT: "tessera-beam embed .. again in a while: it does only what is missing",
        KILLED: "look at the machine's memory, then tessera-beam embed .. again with a smaller --block or --memory",
        HUNG: "tessera-beam embed .. again; where the same block hangs once more, with TESSERA_DEADLINE_S raised",
        MEMORY: "tessera-beam embed .. again with a smaller --block or --memory",
        DISK: "make room or give the right to write, then tessera-beam embed .. again",
        STORE: "mend the rights or quota of the output's store, then tessera-beam embed .. again",
        PROGRAM: "tessera-beam embed .. again; where it fails once more, report the block's receipt",
    }.get(cause, "tessera-beam embed .. again: it does only what is missing")


def stop_reason(failed: Mapping[str, int], done: int) -> str:
    """Why a run should begin no further block; "" while it should go on.

    Args:
      failed: cause -> failed blocks of this run. done: blocks of this run that were made.
    """
    for cause in sorted(STOPPING & set(failed)):
        return f"the first block failed for want of a working {cause}: every other one would"
    total = sum(failed.values())
    if total >= MANY and total > done and len(failed) == 1:
        (cause,) = failed
        return f"{total} of {total + done} blocks failed, all of them for one cause: {cause}"
    return ""
