"""Planetary Computer: Sentinel-2 L2A with the offset in its pixels, and terrain corrected Sentinel-1."""

from model.profile import PC_L2A, PC_RTC
from transforms.catalogs.source import S2_PIXEL_M, Item, Offset, Source, offset_by_baseline
from transforms.scenes import S1, S2

PROVIDER = "planetary-computer"
API_URL = "https://planetarycomputer.microsoft.com/api/stac/v1"


def _offset(_item: Item, baseline: str) -> Offset:
    return offset_by_baseline(baseline)  # items declare neither scale nor offset (microsoft/PlanetaryComputer#406)


def _no_offset(_item: Item, _baseline: str) -> Offset:
    return Offset(0, "radar: nothing to subtract")


OPTICAL = Source(
    name=PC_L2A,
    sensor=S2,
    collections=("sentinel-2-l2a",),
    keys={band: band for band in S2_PIXEL_M},
    pixel_m=S2_PIXEL_M,
    offset=_offset,
    tile="s2:mgrs_tile",
    nodata=0,  # before any offset (facts, sources-and-cogs 1)
)

RADAR = Source(
    name=PC_RTC,
    sensor=S1,
    collections=("sentinel-1-rtc",),
    keys={"VV": "vv", "VH": "vh"},
    pixel_m={},  # in the scene's own zone; read through its own geotransform
    offset=_no_offset,
    datatake="s1:datatake_id",
    nodata=-32768,  # sentinel-1-rtc, raster:bands of its collection (facts, sources-and-cogs 1)
)
