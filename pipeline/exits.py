"""Exits: how the program ends, and with which exit code."""

import errno
import logging
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import typer

from model.errors import BadInput, NotProven, WorkerLost
from pipeline import console
from transforms.storage import StoreError


def ended(program: Callable[..., Any], argv: list[str]) -> int:
    """Runs a program of typer's and returns its exit code (design, section 5)."""
    logging.getLogger().setLevel(logging.ERROR)  # libraries' advice to programmers does not help an operator
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what Beam logs as errors also comes as an exception
    try:
        result = program(args=argv, prog_name="tessera-beam", standalone_mode=False)
    except BadInput as e:
        console.say(f"error: {e}")
        return console.BAD_INPUT
    except NotProven as e:
        console.say(f"error: {e}")
        return console.CHECK_FAILED
    except typer.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as e:  # the border of the program
        return _other(e)
    if result == console.INTERRUPTED:  # typer's word for Ctrl-C
        return _interrupted()
    return result if isinstance(result, int) else console.OK


def leave_with(code: int) -> None:
    """Ends a verb whose result is not plain success. Raises typer.Exit for any other code than 0."""
    if code:
        raise typer.Exit(code)


def _interrupted() -> int:
    console.say("interrupted; what is finished stays, and the same command goes on from there")
    return console.INTERRUPTED


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EIO})


def _of_the_store(error: BaseException | None) -> str:
    """What the disk or bucket itself said behind an error, with the cure; "" where neither said anything."""
    for e in _behind(error):
        if isinstance(e, OSError) and e.errno in _FULL:
            return f"{e.strerror}: what is finished stays; make room and run the same command again"
        if isinstance(e, OSError) and e.errno in _CLOSED:
            where = f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror)
            return f"{where}: what is finished stays; put the folder or its disk right and run the same command again"
        if isinstance(e, WorkerLost):
            return f"{e}; what is finished stays"
        if isinstance(e, StoreError):
            return f"{e}; what is finished stays: run the same command again when the store is well"
    return ""


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refused_elsewhere(error: BaseException) -> str:
    """What a worker in another process refused: an engine hands over the text of its traceback alone; else ""."""
    for e in _behind(error):
        if found := re.search(r"model\.errors\.BadInput: (.+?)(?: \[while running '|\n|$)", str(e)):
            return found[1]
    return ""


def stop_politely() -> None:
    """Makes SIGTERM (a container that is stopped, a machine that is taken back) what Ctrl-C is."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _other(error: Exception) -> int:
    """Exit code of what is neither bad input nor a plain interrupt."""
    if any(isinstance(e, KeyboardInterrupt) for e in _behind(error)):  # Beam wraps it into an error of its own
        return _interrupted()
    if refused := _refused_elsewhere(error):
        console.say(f"error: {refused}")
        return console.BAD_INPUT
    if said := _of_the_store(error):
        console.say(f"error: {said}")
        return console.CRASHED
    usage = getattr(error, "format_message", None)  # click's own: unknown options, missing arguments
    if usage is not None:
        console.say(f"error: {usage()}\nsee tessera-beam --help")
        return console.BAD_INPUT
    traceback.print_exception(error)
    console.say("this is a fault of tessera-beam or of the machine, not of your input; what is finished stays")
    return console.CRASHED
