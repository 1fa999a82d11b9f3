"""Crews: threads that take jobs in the order of asking, and whom nobody has to wait for when the work is given up."""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

A = TypeVar("A")
R = TypeVar("R")
_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Crew:
    """So many threads.

    Those of concurrent.futures are waited for when Python ends, and one that waits for a server would hold up Ctrl-C
    for as long as that server is silent; these are daemons.
    """

    def __init__(self, size: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(size)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[..., R], *args: Any) -> "Future[R]":
        """Asks for a job; its future is cancelled where the crew has stopped."""
        future: Future[R] = Future()
        if self._over.is_set():
            future.cancel()
        else:
            self._jobs.put((future, job, args))
        return future

    def ahead(self, job: Callable[[A], R], things: Iterable[A], window: int) -> Iterator[R]:
        """Yields job(thing) in the order of things, with at most `window` of them begun and not yet taken.

        Raises what a job raised, when its turn comes; CancelledError where the crew has stopped.
        """
        waiting: collections.deque[Future[R]] = collections.deque()
        try:
            for thing in things:
                waiting.append(self.submit(job, thing))
                if len(waiting) == window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def stop(self, wait_s: float = 0.0) -> None:
        """Takes no more jobs; those that are under way get `wait_s` seconds in all."""
        self._over.set()
        self._jobs.put(None)
        ends = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            future, job, args = task
            if self._over.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job(*args)
            except CancelledError:
                future.set_exception(CancelledError())
            except BaseException as e:
                future.set_exception(e)
            else:
                future.set_result(result)
        with contextlib.suppress(queue.Empty):
            while True:
                if (task := self._jobs.get_nowait()) is not None:
                    task[0].cancel()
                    task[0].set_running_or_notify_cancel()
        self._jobs.put(None)  # for the next of them
