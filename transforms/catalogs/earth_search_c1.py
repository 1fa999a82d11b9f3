"""Earth Search `sentinel-2-c1-l2a`: Collection 1 as ESA made it, with truthful scale and offset."""

from collections.abc import Mapping

from model.profile import ES_C1
from transforms.catalogs.earth_search import KEYS
from transforms.catalogs.source import BOA_OFFSET_DN, S2_PIXEL_M, Item, Offset, Source, number
from transforms.scenes import S2


def _declared(item: Item, key: str) -> tuple[float, float] | None:
    """(scale, offset) of an asset's first band, or None where it does not say."""
    assets = item.get("assets")
    asset = assets.get(key) if isinstance(assets, Mapping) else None
    if not isinstance(asset, Mapping):
        return None
    bands = asset.get("raster:bands") or asset.get("bands") or [{}]
    first = bands[0] if isinstance(bands, list) else None
    fields = {**asset, **(first if isinstance(first, Mapping) else {})}
    scale = number(fields.get("scale", fields.get("raster:scale")))
    offset = number(fields.get("offset", fields.get("raster:offset")))
    return None if offset is None or not scale else (scale, offset)


def _offset(item: Item, _baseline: str) -> Offset:
    """From `raster:bands` of the ten bands: reflectance = scale x DN + offset, so -0.1 / 0.0001 stands for 1000 DN."""
    said = {_declared(item, key) for band, key in KEYS.items() if band != "SCL"}
    if len(said) != 1:
        return Offset(None, "the bands do not declare one and the same scale and offset in raster:bands")
    (pair,) = said
    if pair is None:
        return Offset(None, "no band declares scale and offset in raster:bands, which decide the offset")
    scale, offset = pair
    dn = round(-offset / scale)
    if dn not in (0, BOA_OFFSET_DN):
        return Offset(None, f"raster:bands declare scale {scale:g}, offset {offset:g}: {dn} DN is neither 0 nor 1000")
    return Offset(dn, f"raster:bands declare scale {scale:g}, offset {offset:g}: {dn} DN")


SOURCE = Source(
    name=ES_C1,
    sensor=S2,
    collections=("sentinel-2-c1-l2a",),
    keys=KEYS,
    pixel_m=S2_PIXEL_M,
    offset=_offset,
    tile="grid:code",
    nodata=0,  # before any offset (facts, sources-and-cogs 1)
)
