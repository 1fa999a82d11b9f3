"""The error that a person can mend: its message names the thing that was given and the cure."""


class BadInput(ValueError):
    """Input that is refused before work starts. The command line prints the message and exits with code 2."""


class NotProven(Exception):
    """A result that failed its own check and was thrown away, in words."""


class WorkerLost(Exception):
    """Worker processes that end whatever is done about it."""
