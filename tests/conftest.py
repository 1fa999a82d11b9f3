"""What several tests share: the project's data folder, a small planet with its inventory, models, threads."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest

from model.modelfile import ModelFile, open_model
from pipeline import inventory
from pipeline.demo.planet import Planet, build
from pipeline.demo.run import FROZEN, model_path
from transforms.inventory import read_tile
from transforms.periods import period_of

# Speed is measured in bench/: an example that is slow on a busy machine is no fault.
# The same commit has the same verdict; TESSERA_EXPLORE=1 draws other examples each time.
explore = bool(os.environ.get("TESSERA_EXPLORE"))
hypothesis.settings.register_profile("untimed", deadline=None, derandomize=not explore)
hypothesis.settings.load_profile("untimed")

SHARED = Path(__file__).parents[1].parent / "shared"


@dataclasses.dataclass(frozen=True)
class World:
    """A small planet, the inventories of its two periods, the shipped model, and the island as --bbox."""

    earth: Planet
    inv: str
    inv_2025: str
    model: str
    bbox: str


@pytest.fixture(scope="session")
def planet(tmp_path_factory: pytest.TempPathFactory) -> Planet:
    """All tiles of a planet whose island is 640 m wide; no test changes its files."""
    return build(tmp_path_factory.mktemp("planet") / "p", size_m=640)


@pytest.fixture(scope="session")
def world(planet: Planet, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    for year in ("2024", "2025"):
        found = [(str(planet.folder), None)]
        inventory.build(found, period_of(year), planet.tiles, root / f"{year}.parquet", now=FROZEN)
    bbox = ",".join(str(v) for v in planet.bbox)
    return World(planet, str(root / "2024.parquet"), str(root / "2025.parquet"), model_path(), bbox)


@pytest.fixture(scope="session")
def sparse(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with few dates: for what becomes of blocks and tiles, whatever lies in them."""
    root = tmp_path_factory.mktemp("sparse")
    for inv in (world.inv, world.inv_2025):
        fewer_dates(inv, world.earth.tiles, root / Path(inv).name)
    return dataclasses.replace(world, inv=str(root / "2024.parquet"), inv_2025=str(root / "2025.parquet"))


def fewer_dates(inv: str | Path, tiles: Sequence[str], out: Path) -> Path:
    """Writes an inventory with a sixth of the dates of another, and those that not all of its tiles have."""
    scenes = [s for t in tiles for s in read_tile(inv, t) if s.kept]
    seen = {day: {s.tile for s in scenes if s.day == day} for day in sorted({s.day for s in scenes})}
    kept = {day for n, day in enumerate(seen) if n % 6 == 0 or len(seen[day]) < len(tiles)}
    others = sorted({s.id for s in scenes if s.day not in kept})
    inventory.amend(inv, [(scene, None) for scene in others], "fewer dates", out)
    return out


@pytest.fixture(scope="session")
def model() -> ModelFile:
    """The shipped model."""
    return open_model(model_path())


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Key of `gate_files.FORMS` -> path of a model file that passes the gate, made at first use."""
    from gate_files import sound_files  # takes PyTorch, which few tests need

    return sound_files(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture(scope="session")
def golden_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where inventories of the golden scenes are written, each once."""
    return tmp_path_factory.mktemp("golden")


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file of an output folder but receipts, clocks and the page: what two runs must agree in."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] not in ("_runs", "_work")
    }
