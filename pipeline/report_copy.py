"""Report copy: what the report page reads of an output folder in a bucket, as files on this machine."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.report_facts import has_sums, tile_of_record
from pipeline.work import side_by_side
from transforms.storage import Entry, Store, check_name

# Items, and of their assets the small ones and the preview; what a run left; what stands at the top.
_NEEDED = re.compile(
    r"[0-9][^/]*/[^/]+/[^/]+\.json"
    r"|[0-9][^/]*/[^/]+/[^/]+/(blocks\.parquet|thumbnail\.png|preview\.tif)"
    r"|_runs/.*\.(json|txt)"
    r"|[a-z]+\.(json|parquet)"
)


def _without_summed(store: Store, needed: list[Entry]) -> Iterator[Entry]:
    """Without the records of blocks whose tile is published and whose run has their sums: a planet has 660,000."""
    parts = [e.name.split("/") for e in needed]
    published = {(p[1], p[0]) for p in parts if len(p) == 3 and p[0][0] != "_" and p[2].endswith(".json")}
    ends = [e.name for e, p in zip(needed, parts, strict=True) if p[0] == "_runs" and p[2:] == ["run.json"]]
    summed = {name.split("/")[1] for name, data in zip(ends, side_by_side(store.get, ends), strict=True) if _sums(data)}
    for entry, p in zip(needed, parts, strict=True):
        if not (p[0] == "_runs" and p[1] in summed and p[2] == "blocks" and tile_of_record(p[-1]) in published):
            yield entry


def _sums(data: bytes) -> bool:
    try:
        record = json.loads(data)
    except ValueError:
        return False  # the page says what is wrong with it
    return isinstance(record, dict) and has_sums(record)


@contextlib.contextmanager
def local_copy(store: Store, pictures: int) -> Iterator[Path]:
    """A folder with the objects that the page reads, removed afterwards; its name is the last part of the URL.

    Args:
      pictures: of more tiles than this no thumbnail or preview is copied: the page shows none of them.
    """
    needed, begun = list[Entry](), set[str]()
    for entry in store.walk(""):
        if _NEEDED.fullmatch(entry.name):
            needed.append(entry)
        elif entry.name.startswith("_work/"):
            begun.add("/".join(entry.name.split("/")[:3]))
    if sum(e.name.endswith("/thumbnail.png") for e in needed) > pictures:
        needed = [e for e in needed if not e.name.endswith((".png", ".tif"))]
    needed = list(_without_summed(store, needed))
    with tempfile.TemporaryDirectory(prefix="tessera-report-") as root:
        folder = Path(root) / store.url.rstrip("/").rpartition("/")[2]
        folder.mkdir()

        def copy(entry: Entry) -> None:
            check_name(entry.name, store.url)
            target = folder / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a run works on
                target.write_bytes(store.get(entry.name))

        for _ in side_by_side(copy, needed):
            pass
        for name in begun:
            (folder / name).mkdir(parents=True, exist_ok=True)
        yield folder
