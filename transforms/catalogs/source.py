"""Sources: what one provider's collection calls things and how its pixels are offset, as a table of facts."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from transforms.scenes import S2

Item = Mapping[str, Any]  # one STAC item as its JSON says it; never a pystac object

BOA_OFFSET_DN = 1000  # ESA S2 PSD, processing baseline 04.00: BOA_ADD_OFFSET -1000 for every band
OFFSET_BASELINE = "04.00"  # the first baseline whose products carry it

BY_DATETIME = "datetime"  # the scenes of a sensor are ordered by their time alone
BY_CATALOGUE = "catalogue"  # as the catalogue lists them, since the reference takes the first of a day as it comes


@dataclasses.dataclass(frozen=True)
class Offset:
    """What has to be subtracted from a scene's digital numbers.

    Attributes:
      dn: 0 or BOA_OFFSET_DN; None where the item does not let anybody know, and the scene must be left out.
      reason: the rule that decided it, in words.
    """

    dn: int | None
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)  # one object a source: compared and hashed by identity
class Source:
    """One collection of one provider.

    Attributes:
      name: collection@provider, as profiles and inventories write it.
      sensor: `S2` or `S1`.
      collections: ids that items of it carry; the first is the one to search, the others are older names of copies.
      keys: band -> asset key.
      pixel_m: band -> pixel size; a file of another size is not that band. Empty where files may differ.
      offset: (item, baseline) -> Offset.
      tile: property that holds the MGRS tile ("33TWL" or "MGRS-33TWL"); "" where items are not cut by tile.
      baseline, generated, datatake, orbit, relative_orbit, cloud_cover: properties that hold them.
      order: `BY_DATETIME` or `BY_CATALOGUE`.
      drivers: GDAL's names of the formats that its files may have.
      nodata: value without data in its files: of those that say none (their format has no tag for it, or the tag is
        lost), and the only one that a file may say; None where files differ.
    """

    name: str
    sensor: str
    collections: tuple[str, ...]
    keys: Mapping[str, str]
    pixel_m: Mapping[str, int]
    offset: Callable[[Item, str], Offset]
    tile: str = ""
    baseline: str = "s2:processing_baseline"
    generated: str = "s2:generation_time"
    datatake: str = "s2:datatake_id"
    orbit: str = "sat:orbit_state"
    relative_orbit: str = "sat:relative_orbit"
    cloud_cover: str = "eo:cloud_cover"
    order: str = BY_DATETIME
    drivers: tuple[str, ...] = ("GTiff",)
    nodata: float | None = None

    @property
    def provider(self) -> str:
        return self.name.partition("@")[2]

    @property
    def is_optical(self) -> bool:
        return self.sensor == S2


# ESA S2 PSD: native resolution of the bands TESSERA uses, and of the scene classes.
S2_PIXEL_M = {
    "B04": 10, "B02": 10, "B03": 10, "B08": 10, "B8A": 20, "B05": 20,
    "B06": 20, "B07": 20, "B11": 20, "B12": 20, "SCL": 20,
}  # fmt: skip


# What older items call the same things: those of the buckets sentinel-s2-l2a and -l1c (stactools sentinel2 0.2).
OLDER_NAMES = {
    "s2:processing_baseline": "sentinel2:processing_baseline",
    "s2:generation_time": "sentinel2:generation_time",
    "s2:product_uri": "sentinel2:product_title",
    "sat:orbit_state": "sentinel2:orbit_direction",
    "sat:relative_orbit": "sentinel2:relative_orbit_number",
}


def said(item: Item, name: str) -> Any:
    """A property of an item by its present name, else by the older one; None where it has neither."""
    properties = item["properties"]
    value = properties.get(name)
    return properties.get(OLDER_NAMES.get(name, name)) if value is None else value


def number(value: object) -> float | None:
    """A finite JSON number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def offset_by_baseline(baseline: str) -> Offset:
    """The rule for pixels that nobody has harmonised: 1000 DN from baseline 04.00 on, whatever the date of acquisition.

    By baseline and not by date, since Collection 1 and reprocessed archives give new baselines to old scenes (trap T7).
    """
    if not baseline:
        return Offset(
            None, "the item has no processing baseline, or two that differ in it, and that decides the offset"
        )
    if baseline >= OFFSET_BASELINE:
        return Offset(BOA_OFFSET_DN, f"baseline {baseline} is {OFFSET_BASELINE} or newer: the pixels carry 1000 DN")
    return Offset(0, f"baseline {baseline} is older than {OFFSET_BASELINE}: the pixels carry no offset")
