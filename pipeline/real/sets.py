"""Sets: `python -m pipeline.real.sets REAL_DATA OUT` writes the real data with labels as probe sets."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from model.errors import BadInput
from pipeline.console import BAD_INPUT, OK, say, show
from pipeline.real import parcels, points, presto
from pipeline.real.probe_set import ProbeSet, write

READERS: dict[str, Callable[[Path], ProbeSet]] = {
    **{region: functools.partial(parcels.read, region=region) for region in parcels.REGIONS},
    "points": points.read,
    **{name: functools.partial(presto.read, name=name) for name in presto.SETS},
}


def build(shared: Path, out: Path, names: Iterable[str] = READERS) -> dict[str, Any]:
    """Writes probe sets, each into a folder of its name.

    Returns:
      `sets`: per set its `folder`, `records`, `labels`, `task`, `classes` (counts), `groups`, `notes`.

    Raises:
      BadInput: an unknown name, a file that is missing or not as it should be, a set that is there already.
    """
    names = list(names)
    if unknown := [name for name in names if name not in READERS]:
        raise BadInput(f"set {unknown[0]!r}: there are {', '.join(READERS)}")
    found = {}
    for name in names:
        made = READERS[name](shared)
        write(made, out / name)
        labels = made.labels
        found[name] = {
            "folder": str(out / name),
            "records": len(made.records),
            "labels": len(labels),
            "task": labels.task,
            "classes": {c: int((labels.label == c).sum()) for c in labels.classes},
            "groups": len(set(labels.group.tolist())),
            "notes": list(made.notes),
        }
    return {"sets": found}


def as_text(result: dict[str, Any]) -> str:
    lines = []
    for s in result["sets"].values():
        classes = ", ".join(f"{c} {n}" for c, n in s["classes"].items())
        lines.append(f"{s['folder']}: {s['records']:,} records, {s['labels']:,} with a label, {s['groups']} groups")
        lines.append(f"  {s['task']}{': ' + classes if classes else ''}")
        lines += [f"  - {note}" for note in s["notes"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.real.sets", description=__doc__)
    parser.add_argument("shared", type=Path, help="folder of the real data, e.g. ../shared/real-data")
    parser.add_argument("out", type=Path, help="folder for the sets")
    parser.add_argument("--sets", default=",".join(READERS), help=f"some of {','.join(READERS)}")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(arguments)
    try:
        result = build(args.shared, args.out, args.sets.split(","))
    except BadInput as e:
        say(f"error: {e}")
        return BAD_INPUT
    show(result, args.json, as_text)
    return OK


if __name__ == "__main__":
    sys.exit(main())
