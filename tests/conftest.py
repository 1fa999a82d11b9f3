"""What several tests share: the project's data folder, and a small planet with its inventory."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from pipeline import inventory
from pipeline.demo import planet
from pipeline.demo.run import FROZEN, model_path
from transforms.periods import period_of

SHARED = Path(__file__).parents[1].parent / "shared"


@dataclasses.dataclass(frozen=True)
class World:
    """A small planet, the inventories of its two periods, the shipped model, and the island as --bbox."""

    earth: planet.Planet
    inv: str
    inv_2025: str
    model: str
    bbox: str


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    earth = planet.build(root / "planet", size_m=640)
    for year in ("2024", "2025"):
        inventory.build([(str(earth.folder), None)], period_of(year), earth.tiles, root / f"{year}.parquet", now=FROZEN)
    bbox = ",".join(str(v) for v in earth.bbox)
    return World(earth, str(root / "2024.parquet"), str(root / "2025.parquet"), model_path(), bbox)


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file of an output folder but receipts, clocks and the page: what two runs must agree in."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] not in ("_runs", "_work")
    }
