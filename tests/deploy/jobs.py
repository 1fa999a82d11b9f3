"""The job files under deploy/, filled in as an operator would, and run dry where no socket leaves this machine."""

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import shapely

from pipeline.cli import run
from pipeline.engines.images import tag_for

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy").rglob("*.toml"))
FILLED = {
    "YOUR-PROJECT": "my-project",
    "YOUR-BUCKET": "my-bucket",
    "YOUR-REGISTRY": "registry.example/team",
    "YOUR-SUBNET": "workers",
    "0.1.0-beam2.77.0-py311-cuda": tag_for("cuda"),
}


def named(path: Path) -> str:
    return path.relative_to(ROOT / "deploy").as_posix()


def filled(file: Path, world, folder: Path) -> Path:
    """A copy of a job file without placeholders, and the files beside it that it names, in `folder`."""
    text = file.read_text().replace("33TWL", world.earth.tiles[0])
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    assert "YOUR-" not in text
    beside(world, folder)
    copy = folder / file.name
    copy.write_text(text)
    return copy


def beside(world, folder: Path) -> None:
    """What job files name without a folder."""
    for name in ("2024", "amended", "newer", "country"):
        shutil.copy(world.inv, folder / f"{name}.parquet")
    shutil.copy(world.model, folder / "model.onnx")
    west, south, east, north = world.earth.bbox
    (folder / "country.geojson").write_text(shapely.to_geojson(shapely.box(west, south, east, north)))
    (folder / "stale.txt").write_text(f"{world.earth.tiles[-1]}  # newer scenes\n")
    (folder / "beam-runners-flink-1.20-job-server-2.77.0.jar").touch()


@contextlib.contextmanager
def loopback_alone(monkeypatch) -> Iterator[None]:
    """Sockets that go nowhere but to this machine: whatever else is asked for is a failure, not a wait."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connected(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        return connect(self, address)

    def looked_up(host, *more, **others):
        assert host in (None, "127.0.0.1", "::1", "localhost", socket.gethostname()), host
        return look_up(host, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", connected)
        patch.setattr(socket, "getaddrinfo", looked_up)
        yield


def dry(file: Path, capsys, *more: str) -> dict:
    """What a dry run of a job file says."""
    capsys.readouterr()
    code = run(["embed", "--config", str(file), "--dry-run", "--json", *more])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)
