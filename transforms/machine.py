"""Machine: how much memory a process may take here."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from model.errors import BadInput
from transforms.memory import Budget, block_that_fits, fitting

NO_LIMIT = 1 << 60  # from here on a number in a cgroup v1 file says "none" (the largest multiple of a page)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Memory of a machine, or of the part of it that a process may use: `what` says which."""

    memory_bytes: int
    what: str


def machine(root: Path = Path("/")) -> Machine | None:
    """The least of the machine's memory and the limits of the control groups around this process; None if unknown.

    Args:
      root: of the file system, another one in tests.
    """
    found = [Machine(n, "the control group") for n in _group_limits(root)]
    try:
        text = (root / "proc/meminfo").read_text()
        total = next(line for line in text.splitlines() if line.startswith("MemTotal:"))
        found.append(Machine(int(total.split()[1]) * 1024, "this machine"))
    except (OSError, StopIteration, ValueError, IndexError):
        if root == Path("/") and hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
            found.append(Machine(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"))
    return min(found, key=lambda m: m.memory_bytes, default=None)


def _group_limits(root: Path) -> Iterator[int]:
    """Limits of the process's control groups, version 1 and 2, and of all around them.

    Inside a container the process's path may be the host's, of which nothing is there: what is mounted at the top is
    the container's own group then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        files: dict[str, tuple[str, ...]] = {}  # by where groups are mounted
        if controllers == "":
            files = dict.fromkeys(("sys/fs/cgroup", "sys/fs/cgroup/unified"), ("memory.max", "memory.high"))
        elif "memory" in controllers.split(","):
            files = {"sys/fs/cgroup/memory": ("memory.limit_in_bytes",)}
        group = PurePosixPath("/" + path.lstrip("/"))
        for mount, names in files.items():
            for inner in (group, *group.parents):
                for name in names:
                    try:
                        limit = int((root / mount / str(inner).lstrip("/") / name).read_text())
                    except (OSError, ValueError):  # not there, or "max"
                        continue
                    if 0 < limit < NO_LIMIT:
                        yield limit


def check_machine(budget: Budget, workers: int, here: Machine | None) -> None:
    """Whether so many workers on one machine have the memory that they are going to take.

    Raises:
      BadInput: they have not; the message names the block size that would fit, or the memory of lower strips.
    """
    if here is None or workers * budget.total_bytes <= here.memory_bytes:
        return
    each = here.memory_bytes // workers
    memory_gib = each * 10 // 2**30 / 10
    cures = []
    if fits := block_that_fits(budget.load, each):
        cures.append(f"--block {fits}")
    if fitting(budget.load, int(memory_gib * 2**30)):  # in lower strips
        cures.append(f"--memory {memory_gib}")
    if workers > 1:
        cures.append("fewer --workers")
    raise BadInput(
        f"{workers} worker{'s need' if workers > 1 else ' needs'} {workers * budget.total_bytes / 2**30:.1f} GiB for "
        f"blocks of {budget.load.block_px} px, and {here.what} has {here.memory_bytes / 2**30:.1f} GiB: "
        f"use {' or '.join([*cures, 'a larger machine'])}"
    )
