"""The ground that all tortures stand on: three tiles, six small blocks, few scenes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rasterio.warp import transform_bounds

from pipeline import inventory
from pipeline.demo.items import S1_COLLECTION, S2_COLLECTION
from pipeline.demo.planet import Planet, build
from pipeline.demo.run import FROZEN, model_path
from transforms.grid import tile_of
from transforms.periods import period_of

TILES = ("32TQQ", "32TQR", "33TUL")
KILLED_TILES = TILES[1:]  # of five blocks; the third tile is for what must be published beside poison
YEAR = "2024"
BLOCK_PX = 256
CORNER = ("33TUL", 10_496, 256)  # where four of its blocks meet, within the island; in the others it lies in one block
REACH_PX = 12  # on all sides of it: some 600 pixels in all, for a round is to take seconds
EVERY = 6  # of the planet's Sentinel-2 passes one in so many stays: reading them is most of a round
SIZE_M = 640
KEPT = "kept"  # a file beside the items that stay


@dataclasses.dataclass(frozen=True)
class Ground:
    """A planet with few scenes, and its inventories.

    Attributes:
      folder: holds all of it. inv: the inventory. inv_b: the same without one radar scene: the tiles' next revision.
      bbox: of the pixels that are embedded. dropped: the scene that `inv_b` is without.
    """

    folder: Path
    planet: Planet
    inv: str
    inv_b: str
    bbox: str
    dropped: str

    def embed(self, out: str, second: bool = False, tiles: Sequence[str] = KILLED_TILES, *more: str) -> list[str]:
        """The command line that embeds; `second`: from the second inventory."""
        inv = self.inv_b if second else self.inv
        where = ["--out", out, "--tiles", ",".join(tiles), "--bbox", self.bbox, "--block", str(BLOCK_PX)]
        return ["embed", inv, "--model", model_path(), *where, *more]

    def kept_scenes(self, tile: str) -> list[str]:
        """Ids of the optical scenes of a tile that are in the catalogue."""
        return [s for s in self.planet.s2_ids(tile) if (self.planet.folder / S2_COLLECTION / s / KEPT).exists()]


def make_ground(folder: Path) -> Ground:
    """Builds it in an empty folder; some five seconds."""
    planet = build(folder / "planet", size_m=SIZE_M, tiles=TILES)
    _thin_out(planet)
    inv, inv_b = folder / "a.parquet", folder / "b.parquet"
    inventory.build([(str(planet.folder), None)], period_of(YEAR), TILES, inv, now=FROZEN)
    dropped = next(s for s in planet.s1_ids() if (planet.folder / S1_COLLECTION / s / KEPT).exists())
    inventory.amend(str(inv), [(dropped, None)], "a torture", inv_b)
    return Ground(folder, planet, str(inv), str(inv_b), _bbox(), dropped)


def _bbox() -> str:
    name, row, col = CORNER
    tile = tile_of(name)
    x, y, reach = tile.left_m + 10 * col, tile.top_m - 10 * row, 10 * REACH_PX
    west, south, east, north = transform_bounds(tile.crs, "EPSG:4326", x - reach, y - reach, x + reach, y + reach)
    return f"{west:.6f},{south:.6f},{east:.6f},{north:.6f}"


def _thin_out(planet: Planet) -> None:
    """Leaves most items out of the catalogues; their files stay where they are, and nobody asks for them."""
    for file in sorted(planet.folder.glob("*/collection.json")):
        record = json.loads(file.read_text())
        items = sorted(x["href"] for x in record["links"] if x["rel"] == "item")
        passes = sorted({_datatake(href) for href in items})
        kept = {h for h in items if passes.index(_datatake(h)) % EVERY == 1}
        for href in kept:
            (file.parent / href).with_name(KEPT).touch()
        record["links"] = [x for x in record["links"] if x["rel"] != "item" or x["href"] in kept]
        file.write_text(json.dumps(record))


def _datatake(href: str) -> str:
    """What the items of one pass share: its date and time."""
    return next(word for word in Path(href).stem.split("_") if len(word) == 15 and "T" in word)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_folder(out: Path) -> dict[str, bytes]:
    """Every file of an output folder by its name, but what runs say of themselves."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] != "_runs"
    }
