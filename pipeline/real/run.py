"""The real run: `python -m pipeline.real.run SHARED OUT`, what `make real` does."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

from model.errors import BadInput
from pipeline.console import BAD_INPUT, CHECK_FAILED, OK, say, show, warn
from pipeline.real.checks import table
from pipeline.real.cubes import OPENEO_OPTICAL, OPENEO_RADAR, WORLDCEREAL, can_read


def skipped(shared: Path) -> str | None:
    """Why there is nothing to do, or None."""
    if not shared.is_dir():
        return f"no folder {shared}"
    for name in (WORLDCEREAL, OPENEO_OPTICAL, OPENEO_RADAR):
        if not (shared / name).is_file():
            return f"no file {shared / name}"
    if not can_read():
        return "this rasterio's GDAL has no netCDF driver; the wheels of PyPI have it: pip install --force rasterio"
    return None


def run(shared: Path, out: Path, model: str | None = None) -> dict[str, Any]:
    """Both cubes through the chain.

    Args:
      model: a model file; the shipped one by default.

    Returns:
      `parts`: per cube its `files`, `checks` and `facts`; `ok`; `seconds`.

    Raises:
      BadInput: a cube or model that cannot be used.
    """
    # Not at the top: they bring Beam, which a run that is skipped need not wait for.
    from pipeline.demo.run import model_path
    from pipeline.real import openeo, worldcereal

    clock = time.perf_counter()
    model = model or model_path()
    say(f"1/2 WorldCereal: a year of monthly composites, embedded by {model}")
    parts = {"worldcereal": worldcereal.embed(worldcereal.read(shared), out, model, warn)}
    say("2/2 openEO: cubes of April 2023 to COGs and STAC items, and back through inventory and d-pixels")
    parts["openeo"] = openeo.round_trip(*openeo.read(shared), out, warn)
    return {
        "parts": parts,
        "ok": all(check.ok for part in parts.values() for check in part["checks"]),
        "seconds": round(time.perf_counter() - clock, 1),
    }


def as_text(result: dict[str, Any]) -> str:
    """The summary in words: facts, files, and the table of what was compared."""
    lines = []
    for name, part in result["parts"].items():
        lines += [name, *(f"  - {fact}" for fact in part["facts"]), *(f"  {file}" for file in part["files"]), ""]
    lines.append(table([check for part in result["parts"].values() for check in part["checks"]]))
    lines.append(f"{'all equal' if result['ok'] else 'NOT equal'}, {result['seconds']} s")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.real.run", description=__doc__)
    parser.add_argument("shared", type=Path, help="folder of the real cubes, e.g. ../shared/real-data")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--model", help="a model file; the shipped one by default")
    args = parser.parse_args(arguments)
    if reason := skipped(args.shared):
        show({"skipped": reason}, False, lambda r: f"skipped: {r['skipped']}")
        return OK
    logging.getLogger().setLevel(logging.ERROR)  # libraries' advice to programmers does not help an operator
    try:
        result = run(args.shared, args.out, args.model)
    except BadInput as e:
        say(f"error: {e}")
        return BAD_INPUT
    show(result, False, as_text)
    return OK if result["ok"] else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
