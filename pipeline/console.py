"""The console: one place that decides what goes to stdout and stderr, and how errors leave the program."""

import json
import sys
from collections.abc import Callable
from typing import Any

import rich.console

errors = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
OK, CRASHED, BAD_INPUT, WITH_FAILURES, CHECK_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def say(text: str) -> None:
    """A line for the person who waits; never on stdout, which belongs to results."""
    errors.print(text, markup=False)


def warn(text: str) -> None:
    errors.print(f"warning: {text}", style="yellow", markup=False)


def on_terminal() -> bool:
    return errors.is_terminal


def show(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """The result of a verb on stdout: one JSON object, or words."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=str) + "\n")
    else:
        sys.stdout.write(text(result).rstrip("\n") + "\n")
    sys.stdout.flush()
