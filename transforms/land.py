"""Land: the share of every tile that is land, from a small packaged table.

The table comes from the 1 km GLOBE mask of the package `global-land-mask` (`python -m transforms.land_table` makes it
again): 20,497 tiles, 18,718 of them not wholly south of 60 S. In that mask lakes and the Caspian Sea are land,
Antarctic ice shelves are sea, and an atoll narrower than a cell may be missing: name such tiles, or draw a region.
"""

import functools
import importlib.resources
import math

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import BadInput
from transforms import grid

FORMAT = "tessera-beam/land"
VERSION = 1  # raised when a column is added or changes its meaning; newer files are refused by number

_PARALLEL_60_S = 3_348_588  # northing in the southern zones, on the central meridian (PROJ, EPSG:32701)


def land_fraction(tile: str) -> float:
    """Share of the tile that is land, 0 to 1.

    Raises:
      BadInput: no such tile.
    """
    return _fractions().get(grid.tile_of(tile).name, 0.0)


def land_tiles(min_fraction: float = 0.0, south_of_60: bool = False) -> list[str]:
    """The names of the tiles with land, sorted.

    Args:
      min_fraction: least share of land, 0 to 1; 0 keeps every tile with any land or within 1 km of land.
      south_of_60: also tiles that lie wholly south of 60 S, where Sentinel-2 acquires only on request.

    Raises:
      BadInput: `min_fraction` is not a share.
    """
    if math.isnan(min_fraction) or not 0 <= min_fraction <= 1:
        raise BadInput(f"least share of land {min_fraction}: it must lie between 0 and 1")
    names = [name for name, fraction in _fractions().items() if fraction >= min_fraction]
    return names if south_of_60 else [name for name in names if not _wholly_south(name)]


def _wholly_south(name: str) -> bool:
    """Whether a tile's northern edge lies south of 60 S."""
    return name[2] < "N" and grid.tile_of(name).top_m <= _PARALLEL_60_S


@functools.cache
def _fractions() -> dict[str, float]:
    """The packaged table, name to share, sorted by name."""
    with importlib.resources.files("transforms").joinpath("data/land.parquet").open("rb") as file:
        return fractions_of(pq.read_table(file))


def fractions_of(table: pa.Table) -> dict[str, float]:
    """Reads what `table_of` made.

    Raises:
      BadInput: not a land table, or a newer version.
    """
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode():
        raise BadInput(f"this is not a {FORMAT} table")
    if (version := metadata.get(b"version", b"").decode()) != str(VERSION):
        raise BadInput(f"land table version {version}: this release reads version {VERSION}; use a newer tessera-beam")
    return dict(zip(table["tile"].to_pylist(), table["land"].to_pylist(), strict=True))


def table_of(fractions: dict[str, float]) -> pa.Table:
    """Tiles with land as a table (tile: string, land: float32), sorted by name, with format and version."""
    names = sorted(name for name, fraction in fractions.items() if fraction > 0)
    schema = pa.schema(
        [("tile", pa.string()), ("land", pa.float32())], metadata={"format": FORMAT, "version": str(VERSION)}
    )
    return pa.table({"tile": names, "land": [fractions[name] for name in names]}, schema=schema)
