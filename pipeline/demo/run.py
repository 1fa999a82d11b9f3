"""The demo: the whole chain on a small synthetic planet, from catalogue to report."""

import contextlib
import datetime as dt
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.errors import BadInput
from pipeline import inventory, quote, report, verify
from pipeline.console import CHECK_FAILED, OK, WITH_FAILURES
from pipeline.demo import cover_map, planet
from pipeline.demo.api import serve
from pipeline.embed import embed, incomplete
from pipeline.planning import EmbedOptions
from transforms.hosts import allowed
from transforms.periods import period_of

PERIOD = "2024"
# The planet is the same whenever it is built, so its catalogue has a fixed date too: two demos give the same bytes.
FROZEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MAPPED = "32TQR"
WINDOWS = 3  # made again by verify


def model_path() -> str:
    """The shipped model."""
    return str(resources.files("pipeline.demo") / "model.onnx")


def demo(folder: str, api: bool, say: Callable[[str], None], bars: bool) -> dict[str, Any]:
    """Builds the planet in `folder` (or finds it there), runs inventory, quote, embed, verify and report, and maps it.

    Args:
      api: search a loopback STAC API in place of the files.

    Returns:
      The summary, with the program's exit code in `exit_code`.

    Raises:
      BadInput: `folder` holds something else.
    """
    clock = time.perf_counter()
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise BadInput(f"demo {folder}: there is a file of that name")
    say(f"1/7 the synthetic planet, in {root / 'planet'}")
    earth = planet.build(root / "planet", report=_counted(say, bars))
    where = "over a loopback STAC API" if api else "from its files"
    say(f"2/7 inventory of {', '.join(earth.tiles)}, {PERIOD}, {where}")
    inv, out = str(root / "inventory.parquet"), root / "out"
    with (
        serve(earth.folder) if api else contextlib.nullcontext("") as url,
        allowed(urlsplit(url).netloc) if api else contextlib.nullcontext(),
    ):
        catalogs = [(url or str(earth.catalog.parent), None)]
        inventory.build(catalogs, period_of(PERIOD), earth.tiles, inv, now=FROZEN)
        say("3/7 quote")
        for line in quote.as_text(quote.quote(inv, model_path())).splitlines():
            say(f"    {line}")
        say("4/7 embed")
        summary = embed(inv, model_path(), str(out), EmbedOptions(), f"tessera-beam demo {folder}", say, bars)
        say("5/7 verify")
        checked = verify.verify(str(out), WINDOWS, 0, "auto")
    say("6/7 report")
    page = report.report(str(out))
    say(f"7/7 a map of {MAPPED} from {cover_map.LABELS} labelled pixels of each class of ground")
    cogs = sorted(str(p) for p in out.glob(f"{PERIOD}/*/*/embeddings.tif"))
    totals = summary["totals"]
    return {
        "model": summary["model"],
        "pixels": totals["pixels"],
        "blocks": totals["blocks"],
        "tiles": totals["tiles_published"],
        "cogs": cogs,
        "map": _map(earth, cogs, root),
        "report": str(page),
        "checks": checked["checks"],
        "failed_checks": checked["failed"],
        "windows_recomputed": checked["windows_recomputed"],
        "free_bytes": shutil.disk_usage(root).free,
        "seconds": round(time.perf_counter() - clock, 1),
        "exit_code": WITH_FAILURES if incomplete(summary) else OK if checked["ok"] else CHECK_FAILED,
    }


def _map(earth: planet.Planet, cogs: Sequence[str], root: Path) -> dict[str, Any] | None:
    """The picture and what of it is right; None where the tile was not published."""
    cog = next((Path(path) for path in cogs if MAPPED in Path(path).parts), None)
    if cog is None:
        return None
    made = cover_map.of_tile(earth, MAPPED, cog)
    picture = root / "map.png"
    picture.write_bytes(cover_map.picture(made))
    right_of = {kind: round(share, 3) for kind, share in made.right_of.items()}
    return {"picture": str(picture), "labels": made.labels, "right": round(made.right, 3), "right_of": right_of}


def _counted(say: Callable[[str], None], bars: bool) -> Callable[[int, int], None]:
    """A line at each quarter of the planet."""
    said: set[int] = set()

    def progress(done: int, total: int) -> None:
        quarter = 4 * done // total
        if quarter not in said:
            said.add(quarter)
            say(f"    {done} of {total} scenes")

    return progress
