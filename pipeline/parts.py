"""Parts: what an inventory build has found so far, tile by tile beside its output, so that a killed one goes on."""

import dataclasses
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import BadInput
from transforms.inventory import VERSION as INVENTORY_VERSION
from transforms.inventory import SourceRecord
from transforms.scene_rows import scenes_of, table_of
from transforms.scenes import Scene

FORMAT = "tessera-beam/inventory-part"
VERSION = 1  # raised with any change of the files below; a part of another version is searched again
_RECORD = "build.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """What a build found for one tile.

    Attributes:
      tile: MGRS name. scenes: kept and dropped, in their order.
      sources: where they come from. ignored: what was passed over in its search, with counts.
      kept: whether an earlier build had found it.
    """

    tile: str
    scenes: list[Scene]
    sources: tuple[SourceRecord, ...]
    ignored: Mapping[str, int]
    kept: bool = False


class Parts:
    """The folder of the parts, `.NAME.parts` beside an inventory; one build at a time has it.

    Attributes:
      folder: its path. frozen: when the first of the builds that share it began.
      dropped: whether it held parts of a build with other arguments, which are gone now.
    """

    def __init__(self, out: str | Path, arguments: Any, frozen: str) -> None:
        """
        Args:
          arguments: JSON of all that decides what a tile's search finds; parts of other arguments are dropped.
          frozen: the freeze time of a build that begins anew.

        Raises:
          BadInput: another process builds the same inventory now.
        """
        out = Path(out)
        self.folder = out.with_name(f".{out.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / _RECORD).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise BadInput(f"{out}: another build is writing it; wait for it, or give another --out") from None
        for left in out.parent.glob(
            f".{glob.escape(out.name)}.*.tmp"
        ):  # of a build that was killed: nobody else has the lock
            left.unlink(missing_ok=True)
        self._arguments = _digest(json.dumps([FORMAT, VERSION, INVENTORY_VERSION, arguments], sort_keys=True).encode())
        said = self._said()
        self.dropped = bool(said) and said.get("arguments") != self._arguments
        if said.get("arguments") == self._arguments and isinstance(said.get("frozen"), str):
            self.frozen = str(said["frozen"])
            return
        for file in self.folder.glob("*.part"):
            file.unlink(missing_ok=True)
        self.frozen = frozen
        self._lock.seek(0)
        self._lock.truncate()
        record = {"format": FORMAT, "version": VERSION, "arguments": self._arguments, "frozen": frozen}
        self._lock.write(json.dumps(record))
        self._lock.flush()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.part"))

    def load(self, tile: str) -> Part | None:
        """What was found for a tile; None where nothing was, or the file is damaged or of another kind."""
        try:
            first, _, rest = (self.folder / f"{tile}.part").read_bytes().partition(b"\n")
            if first.decode() != f"{FORMAT} {VERSION} {_digest(rest)}":
                return None
            line, _, rows = rest.partition(b"\n")
            header = json.loads(line)
            if header["arguments"] != self._arguments or header["tile"] != tile:
                return None
            scenes = scenes_of(pq.read_table(io.BytesIO(rows)))
            sources = tuple(SourceRecord(**s) for s in header["sources"])
            return Part(tile, scenes, sources, header["ignored"], kept=True)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None

    def save(self, part: Part) -> None:
        """Keeps what was found for a tile: the whole file or none, whenever the process ends."""
        rows = io.BytesIO()
        pq.write_table(table_of(part.scenes), rows, compression="zstd", write_statistics=False, use_dictionary=False)
        header = {
            "arguments": self._arguments,
            "tile": part.tile,
            "sources": [dataclasses.asdict(s) for s in part.sources],
            "ignored": dict(part.ignored),
        }
        rest = json.dumps(header).encode() + b"\n" + rows.getvalue()
        temporary = self.folder / f".{part.tile}.{os.getpid()}.{threading.get_ident()}.tmp"
        temporary.write_bytes(f"{FORMAT} {VERSION} {_digest(rest)}\n".encode() + rest)
        temporary.replace(self.folder / f"{part.tile}.part")

    def close(self, remove: bool) -> None:
        """Lets the folder go, and removes it where nothing in it is worth keeping."""
        if remove or not len(self):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _said(self) -> dict[str, Any]:
        self._lock.seek(0)
        try:
            said = json.loads(self._lock.read() or "{}")
        except ValueError:
            return {"arguments": None}
        return said if isinstance(said, dict) else {"arguments": None}


def fingerprint(path: str) -> list[Any]:
    """What changes with the records of a catalogue on disk: count, bytes and newest time of its files."""
    place = Path(path)
    files: Iterable[Path] = place.rglob("*") if place.is_dir() else [place]
    count = size = newest = 0
    for file in files:
        if file.suffix.lower() in (".json", ".geojson", ".parquet", ".jsonl", ".ndjson") and file.is_file():
            stat = file.stat()
            count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime_ns)
    return [count, size, newest]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
