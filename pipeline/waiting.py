"""Waiting for a job: with an end to patience, and with a choice for the operator who stops the program."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from model.errors import WorkerLost
from pipeline.engines import Engine
from transforms.embed import stop_name
from transforms.plans import Plan
from transforms.storage import Store

LOOK_S = 30.0  # between looks at the store for signs of life, at most
DRAINED = "the operator has drained the run"


def signs_of(store: Store, plan: Plan) -> Callable[[], int]:
    """Counts what workers of a run have left on the store: their own records, and those of ended blocks."""
    return lambda: sum(len(store.names(f"_runs/{plan.run}/{kind}")) for kind in ("workers", "blocks"))


def waited(result: Any, engine: Engine, signs: Callable[[], int], interrupted: Callable[[], bool]) -> bool:
    """Waits for a job's end.

    Args:
      result: of Beam's `run`. signs: a number that grows while workers work.
      interrupted: asked at Ctrl-C where the workers are elsewhere; whether to go on waiting.

    Returns:
      Whether the job has ended; else it has been left to itself.

    Raises:
      WorkerLost: no sign of life for longer than the engine's patience; the job is cancelled.
      RuntimeError: of Beam, the job has failed.
    """
    if engine.start_min == engine.patience_min == float("inf"):
        result.wait_until_finish()
        return True
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            result.wait_until_finish()
        except BaseException as e:  # handed over to the thread that waits for this one
            failed.append(e)

    # A daemon: a job that hangs must not keep the program from ending.
    waiting = threading.Thread(target=wait, name="job", daemon=True)
    waiting.start()
    moved, seen = time.monotonic(), 0
    while waiting.is_alive():
        try:
            patience_s = 60 * (engine.patience_min if seen else engine.start_min)
            waiting.join(min(LOOK_S, patience_s / 10))
            if not waiting.is_alive():
                break
            now = signs()
            if now > seen:
                moved, seen = time.monotonic(), now
            elif time.monotonic() - moved > patience_s:
                result.cancel()
                what = "no block has ended" if seen else "no worker has given a sign of life"
                raise WorkerLost(f"{what} for {patience_s / 60:,.1f} minutes on {engine.name}: the job is cancelled")
        except KeyboardInterrupt:
            if not engine.elsewhere:
                raise
            if not interrupted():
                return False
    if failed:
        raise failed[0]
    return True


def ask(store: Store, plan: Plan, engine: Engine, say: Callable[[str], None]) -> bool:
    """What is to become of a job whose program is stopped: it goes on alone, or drains.

    Returns:
      Whether to wait on.
    """
    answer = ""
    if sys.stdin is not None and sys.stdin.isatty():
        say("the job runs on other machines. [l]eave it running (default), or [d]rain: no further block is begun?")
        try:
            answer = input("> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            answer = ""
    if answer.startswith("d"):
        drain(store, plan.run)
        say("draining: blocks in work are finished, no further one is begun; what is published stays")
        return True
    say(
        f"the job runs on without this program; see tessera-beam status {plan.out}, and "
        f"tessera-beam drain {plan.out} to begin no further block"
    )
    return False


def drain(store: Store, run: str) -> None:
    """Has a run begin no further block. What it has begun is finished, what is missing is the next run's."""
    store.put_if_absent(stop_name(run), DRAINED.encode())
