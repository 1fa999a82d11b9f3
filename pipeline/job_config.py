"""Job files: a run of `embed` as a TOML file, with the same names as its options."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import BadInput
from pipeline.engines import nearest, typed

# What [job] takes: the options of `embed`, without their hyphens in front.
JOB: dict[str, Any] = {
    "inventory": str,
    "model": str,
    "out": str,
    "tiles": str,
    "region": str,
    "bbox": str,
    "device": str,
    "block": int,
    "memory": float,
    "overlap": str,
    "max-failures": int,
    "force": bool,
    "overviews": bool,
    "licence": str,
    "waves": str,
    "wait": bool,
}


@dataclasses.dataclass(frozen=True)
class JobFile:
    """What a file says.

    Attributes:
      job: option -> value. runner: of the engine. settings: of the engine. beam: Beam's own options.
    """

    job: dict[str, Any]
    runner: str
    settings: dict[str, Any]
    beam: tuple[str, ...]


def read_job(path: str) -> JobFile:
    """A job file. Paths in it start where the program is started, as those of options do.

    Raises:
      BadInput: no such file, not TOML, or a name that does not belong there.
    """
    try:
        found = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"--config {path}: it cannot be read ({getattr(e, 'strerror', None) or 'not text'})") from None
    except tomllib.TOMLDecodeError as e:
        raise BadInput(f"--config {path}: {e}") from None
    for table in found:
        if table not in ("job", "engine", "beam") or not isinstance(found[table], dict):
            raise BadInput(f"--config {path}: {table!r} is none of the tables [job], [engine] and [beam]")
    job = {}
    for name, value in found.get("job", {}).items():
        if name not in JOB:
            raise BadInput(f"--config {path}: [job] has no {name!r}{nearest(name, list(JOB))}: it has {', '.join(JOB)}")
        listed = ",".join(value) if name in ("tiles", "waves") and isinstance(value, list) else value
        job[name] = typed(listed, JOB[name], f"--config {path}: {name}")
    engine = dict(found.get("engine", {}))
    runner = typed(engine.pop("runner", "local"), str, f"--config {path}: runner")
    beam = found.get("beam", {})
    if strange := sorted(set(beam) - {"options"}):
        raise BadInput(f"--config {path}: [beam] has options = [..], not {', '.join(strange)}")
    return JobFile(job, runner, engine, typed(beam.get("options", []), tuple[str, ...], f"--config {path}: options"))


def settings_of(texts: list[str]) -> Mapping[str, Any]:
    """What `--set name=value` says, repeated.

    Raises:
      BadInput: one without `=`, or a name that is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("_", "-")
        if not equals or not name:
            raise BadInput(f"--set {text}: name=value is wanted")
        if name in found:
            raise BadInput(f"--set {name} is given twice")
        found[name] = value.strip()
    return found
