"""Places: where a tortured run writes to, on a disk or in the double of a bucket, looked at from outside."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from .ground import of_folder

DOUBLES = Path(__file__).parents[1]


class Place(Protocol):
    """An output folder that a test looks into past the product's own code.

    Attributes:
      url: as --out. env: what a run needs to reach it.
    """

    url: str
    env: dict[str, str]

    def begin(self, holds: dict[str, bytes]) -> None:
        """Empties it, and puts these objects there."""
        ...

    def everything(self) -> dict[str, bytes]:
        """All objects by name, those of `_runs` too."""
        ...


def published(everything: dict[str, bytes]) -> dict[str, bytes]:
    """All but what runs say of themselves: what two runs must agree in, to the byte."""
    return {k: v for k, v in everything.items() if not k.startswith("_runs/")}


@dataclasses.dataclass
class Disk:
    """A folder."""

    folder: Path
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.folder)

    def begin(self, holds: dict[str, bytes]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, data in holds.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def everything(self) -> dict[str, bytes]:
        runs = {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.glob("_runs/**/*") if p.is_file()}
        return of_folder(self.folder) | runs


@dataclasses.dataclass
class Bucket:
    """A folder in the GCS double, which serves from this process."""

    double: Any
    folder: str = "out"

    @property
    def url(self) -> str:
        return f"gs://bucket/{self.folder}"

    @property
    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.double.url}

    def begin(self, holds: dict[str, bytes]) -> None:
        self.double.buckets["bucket"].clear()
        self.double.sessions.clear()
        for name, data in holds.items():
            self.double.put("bucket", f"{self.folder}/{name}", data)

    def everything(self) -> dict[str, bytes]:
        return {k.removeprefix(f"{self.folder}/"): v.data for k, v in sorted(self.double.buckets["bucket"].items())}


@contextlib.contextmanager
def gcs_double() -> Iterator[Any]:
    """The double while it runs, with one empty bucket."""
    if str(DOUBLES) not in sys.path:
        sys.path.append(str(DOUBLES))
    import gcs_double as module

    with module.running("bucket") as double:
        yield double


class Fake:
    """A new folder in the bucket of fake-gcs-server for every try; `env` must be this process's too."""

    def __init__(self, server: str) -> None:
        self.env = {"STORAGE_EMULATOR_HOST": server}
        self.url, self._count = "", 0

    def begin(self, holds: dict[str, bytes]) -> None:
        from transforms.gcs_store import gcs_store

        self._count += 1
        self._store = gcs_store(f"gs://bucket/{self._count}/out")
        self.url = self._store.url
        for name, data in holds.items():
            self._store.replace(name, data)

    def everything(self) -> dict[str, bytes]:
        return {e.name: self._store.get(e.name) for e in self._store.walk("")}


@contextlib.contextmanager
def fake_gcs_server() -> Iterator[Fake | None]:
    """A place in fake-gcs-server while it runs, None where that is not installed."""
    if str(DOUBLES) not in sys.path:
        sys.path.append(str(DOUBLES))
    import pytest
    import store_places

    if store_places.fake_gcs_binary() is None:
        yield None
        return
    with store_places.fake_gcs_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server)
        yield Fake(server)
