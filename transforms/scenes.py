"""Scenes: catalogued acquisitions over a tile, with every decision that was taken about them."""

import dataclasses
import datetime as dt

S2 = "S2"
S1 = "S1"
ASCENDING = "ascending"
DESCENDING = "descending"


@dataclasses.dataclass(frozen=True)
class Asset:
    """One single-band file of a scene.

    Attributes:
      band: the project's name of it: B02..B12, B8A, SCL, VV or VH.
      href: unsigned; absolute, or relative to the root of the scene's source (a catalogue on disk or on a server).
      epsg: of the file's own grid.
      transform: its geotransform as (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, metres.
      height_px, width_px: as the item says; a file that differs is refused when it is read.
      size_bytes, checksum: as the item says, or None and "".
    """

    band: str
    href: str
    epsg: int
    transform: tuple[float, float, float, float, float, float]
    height_px: int
    width_px: int
    size_bytes: int | None = None
    checksum: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One acquisition over one tile: a row of the inventory.

    Attributes:
      tile: MGRS name.
      sensor: `S2` or `S1`.
      source: collection@provider (names in `model.profile`).
      id: item id.
      datetime: of the acquisition, UTC, ISO 8601 with microseconds and "Z".
      order: place in the computed order of the tile's scenes of this sensor: S2 datetime ascending, S1 descending,
        ties by id; for OPERA as the catalogue lists them. Kept and dropped scenes are counted alike.
      orbit: "ascending", "descending", or "" where the catalogue does not say (S2 only).
      relative_orbit: or None.
      platform: e.g. "sentinel-2a".
      baseline: processing baseline "05.10", "" for S1.
      cloud_cover: percent, or None where the item has none.
      datatake: id of the datatake, "" where unknown.
      generated: processing time of the product as the item gives it, "" where unknown.
      offset_dn: DN to subtract (0 or 1000), see `Profile.offset_rule`.
      offset_reason: the rule that decided it, in words.
      kept: False for a scene that is left out.
      dropped_reason: why, in words; "" for a kept scene.
      assets: files by band; what a dropped asset was called stands in `dropped_reason`.
    """

    tile: str
    sensor: str
    source: str
    id: str
    datetime: str
    order: int
    orbit: str
    relative_orbit: int | None
    platform: str
    baseline: str
    cloud_cover: float | None
    datatake: str
    generated: str
    offset_dn: int
    offset_reason: str
    kept: bool
    dropped_reason: str
    assets: tuple[Asset, ...]

    @property
    def day(self) -> dt.date:
        """UTC date of the acquisition."""
        return dt.date.fromisoformat(self.datetime[:10])

    def asset(self, band: str) -> Asset | None:
        return next((a for a in self.assets if a.band == band), None)
