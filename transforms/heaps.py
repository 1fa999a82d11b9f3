"""Heaps: how a process keeps its memory to what it uses, while arrays that stay lie between many that do not."""

import ctypes
import itertools
import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

LASTING_BYTES = 1 << 18  # smaller arrays are not worth pages of their own
HUGE_BYTES = 1 << 22  # from here on numpy asks for huge pages too
# By numbers of glibc's malloc.h. M_ARENA_MAX: threads have eight heaps a core by default, each with its own leftovers.
HEAP_OPTIONS = ((-8, 4),)
READ_SCENES = 16  # after which the holes that reading leaves are given back; without it they grow from scene to scene

_read = itertools.count(1)


def lasting(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros for pixels that stay while others come and go: in pages of their own, which return when it is freed.

    In a heap they lie between a reader's short-lived arrays and keep it from shrinking: up to a third of a block's
    memory was holes (measured). glibc can be told to give all large arrays pages of their own; the fresh pages of each
    of GDAL's tiles took a third more of the processor then.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < LASTING_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return np.zeros(shape, kind)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    array: npt.NDArray[Any] = np.frombuffer(pages, kind).reshape(shape)
    return array


def keep_heaps_few() -> bool:
    """Bounds the number of heaps; False where the C library cannot be told. For a worker's start."""
    return all(_call("mallopt", option, value) for option, value in HEAP_OPTIONS)


def give_back_freed_memory() -> bool:
    """Returns the free pages of all heaps to the system; for the ends of reading and encoding, milliseconds."""
    return _call("malloc_trim", 0)


def scene_was_read() -> None:
    """Gives back freed memory now and then. Some per cent of the processor; after every scene it would be a tenth."""
    if next(_read) % READ_SCENES == 0:
        give_back_freed_memory()


def _call(name: str, *arguments: int) -> bool:
    try:
        return bool(getattr(ctypes.CDLL(None), name)(*arguments))
    except (OSError, AttributeError, TypeError):  # another system's C library
        return False
