"""Report copy: what the report page reads of an output folder in a bucket, as files on this machine."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.work import side_by_side
from transforms.storage import Entry, Store, check_name

# Items, and of their assets the small ones and the preview; what a run left; what stands at the top.
_NEEDED = re.compile(
    r"[0-9][^/]*/[^/]+/[^/]+\.json"
    r"|[0-9][^/]*/[^/]+/[^/]+/(blocks\.parquet|thumbnail\.png|preview\.tif)"
    r"|_runs/.*\.(json|txt)"
    r"|[a-z]+\.(json|parquet)"
)


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
