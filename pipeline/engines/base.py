"""Engines: what they have in common. An engine turns its settings into Beam's options and says what it will start."""

import abc
import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from model.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Job:
    """What an engine must know of a run.

    Attributes:
      run: its name. out: URL of the output. device: cpu, cuda or auto.
      block_bytes: memory that one block takes at most (transforms.memory).
      beam_args: Beam's own options, as the user typed them.
    """

    run: str
    out: str
    device: str
    block_bytes: int
    beam_args: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As engines take job names: small letters, digits and hyphens, from a letter on."""
        return "tessera-beam-" + re.sub("[^a-z0-9]+", "-", self.run.lower()).strip("-")


def setting(default: Any, words: str, **more: Any) -> Any:
    """A setting of an engine: a field with the words that help, template and documents have of it.

    Args:
      more: `needed=True` where the engine does not start without it.
    """
    return dataclasses.field(default=default, metadata={"words": words, **more})


@dataclasses.dataclass(frozen=True)
class Engine(abc.ABC):
    """What runs the graph. The fields of a subclass are its settings, by which files and options know them.

    Attributes:
      name: as `--runner` takes it. remote: whether workers are other machines than this one.
      start_min, patience_min: minutes until a worker gives its first sign of life, and without any block's end, after
        which a run counts as hanging (Prism waits for ever for a worker that does not start: facts, checked 2.1.3).
    """

    name: ClassVar[str]
    remote: ClassVar[bool] = False
    start_min: ClassVar[float] = math.inf
    patience_min: ClassVar[float] = math.inf

    @property
    def elsewhere(self) -> bool:
        """Whether workers may be other machines than this one."""
        return self.remote

    @property
    def processes(self) -> int:
        """Worker processes on one machine."""
        return 1

    @property
    def blocks_at_once(self) -> int:
        """Blocks that one process works on at a time; others wait, whatever the engine hands over."""
        return 1

    @abc.abstractmethod
    def check(self, job: Job) -> None:
        """Raises BadInput for settings that cannot work, before anything is started or submitted."""

    @abc.abstractmethod
    def flags(self, job: Job) -> list[str]:
        """Beam's options as a command line has them, without those that the user gave after `--`."""

    @abc.abstractmethod
    def starts(self) -> str:
        """What the run will start, in a sentence."""

    @contextlib.contextmanager
    def at_work(self, job: Job, log: Path) -> Iterator[list[str]]:
        """Whatever must run beside the job; gives the flags of this time.

        Args:
          log: file for the chatter of what is started.
        """
        yield [*self.flags(job), *job.beam_args]

    def lost(self, error: BaseException) -> bool:
        """Whether a run failed since a worker ended, so that it is worth going on with what is missing."""
        return False

    def link(self, job_id: str) -> str:
        """Where a person sees the job, "" where there is no such place."""
        return ""

    @classmethod
    def settings(cls) -> dict[str, dataclasses.Field[Any]]:
        """Name in files and options -> field. Hyphens there, underscores here."""
        return {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}

    @classmethod
    def from_settings(cls, given: Mapping[str, Any]) -> Self:
        """An engine of what a file or `--set` says.

        Args:
          given: name -> value; text where it comes from an option or a template.

        Raises:
          BadInput: a setting that this engine has not, one of another type, or a missing one.
        """
        known = cls.settings()
        values: dict[str, Any] = {}
        for name, value in given.items():
            hyphened = name.replace("_", "-")
            if hyphened not in known:
                raise BadInput(
                    f"engine {cls.name} has no setting {name!r}{nearest(hyphened, list(known))}: "
                    f"it has {', '.join(known) or 'none'}"
                )
            field = known[hyphened]
            values[field.name] = typed(value, field.type, f"engine {cls.name}: {hyphened}")
        missing = [n for n, f in known.items() if f.metadata.get("needed") and not values.get(f.name)]
        if missing:
            raise BadInput(
                f"engine {cls.name} needs {', '.join(missing)}: "
                f"{'; '.join(known[n].metadata['words'] for n in missing)}. Give --set {missing[0]}=.., or [engine] in "
                "the --config file"
            )
        return cls(**values)


# Workers have everything in their image: by default Beam 2.77 stages the caller's session and a list of its packages.
NOTHING_STAGED = ("--no_save_main_session", "--experiments=disable_logging_submission_environment")


def nearest(name: str, names: list[str]) -> str:
    """ " (did you mean ..?)", or nothing where no name is near."""
    found = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def typed(value: Any, kind: Any, what: str) -> Any:
    """A value of a file, or the text of an option, as a field's type has it.

    Raises:
      BadInput: it is of another type.
    """
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif kind is str:
        if isinstance(value, str):
            return value
    elif kind in (int, float) and not isinstance(value, bool):
        if isinstance(value, int) or (kind is float and isinstance(value, float)):
            return kind(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                return kind(value)
    elif kind == tuple[str, ...]:
        if isinstance(value, str):
            return tuple(v.strip() for v in value.split(",") if v.strip())
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise BadInput(f"{what} = {value!r}: a list of texts is wanted")
    raise BadInput(f"{what} = {value!r}: {words.get(kind, str(kind))} is wanted")


def check_at_least(engine: Engine, least: int, *names: str) -> None:
    """Raises BadInput for a number below `least`: Beam and its services take some of them unread."""
    for name in names:
        if (value := getattr(engine, name)) < least:
            hyphened = name.replace("_", "-")
            raise BadInput(f"engine {engine.name}: {hyphened} = {value}: it must be {least} or more")
