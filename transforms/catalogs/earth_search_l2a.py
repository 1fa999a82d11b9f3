"""Earth Search `sentinel-2-l2a`: harmonised and raw pixels in one collection, told apart by bucket and flag."""

import urllib.parse
from collections.abc import Mapping

from model.profile import ES_L2A
from transforms.catalogs.earth_search import KEYS
from transforms.catalogs.source import S2_PIXEL_M, Item, Offset, Source, offset_by_baseline
from transforms.scenes import S2

FLAG = "earthsearch:boa_offset_applied"
RAW_BUCKET = "sentinel-s2-l2a"  # ESA's own files, which nobody has harmonised, whatever an item's flag says (trap T9)


def _is_raw(href: str) -> bool:
    """Whether the file lies in the raw bucket, however its URL is written."""
    parts = urllib.parse.urlsplit(href)
    host = (parts.hostname or "").partition(".")[0]
    return RAW_BUCKET in (host, parts.path.lstrip("/").partition("/")[0] if host.startswith("s3") else "")


def _raw_bands(item: Item) -> set[bool]:
    """{True}, {False}, or both where a part of the bands lies in the raw bucket; scene classes have no offset."""
    assets = item.get("assets")
    said = [assets.get(key) for band, key in KEYS.items() if band != "SCL"] if isinstance(assets, Mapping) else []
    return {_is_raw(str(fields.get("href"))) for fields in said if isinstance(fields, Mapping)}


def _offset(item: Item, baseline: str) -> Offset:
    """By bucket, flag, then baseline. `raster:bands` says -0.1 for both kinds and is not looked at (trap T9)."""
    raw = _raw_bands(item)
    rule = offset_by_baseline(baseline)
    if raw == {True}:
        return Offset(rule.dn, f"the files lie in {RAW_BUCKET}, where nothing is subtracted; {rule.reason}")
    if len(raw) > 1 and rule.dn != 0:
        return Offset(None, f"some bands lie in {RAW_BUCKET}, others do not: one offset cannot be right for both")
    flag = item["properties"].get(FLAG)
    if flag is True:
        return Offset(0, f"{FLAG} is true: the provider has subtracted it already")
    if flag is False:
        return Offset(rule.dn, f"{FLAG} is false; {rule.reason}")
    if rule.dn == 0:
        return rule  # products this old have nothing to subtract, applied or not
    return Offset(None, f"the item has no {FLAG}, so nobody can know whether its pixels carry the offset")


SOURCE = Source(
    name=ES_L2A,
    sensor=S2,
    # `sentinel-s2-l2a` is what items of the JP2 bucket of the same archive call themselves.
    collections=("sentinel-2-l2a", "sentinel-s2-l2a"),
    keys=KEYS,
    pixel_m=S2_PIXEL_M,
    offset=_offset,
    tile="grid:code",
    nodata=0,  # before any offset (facts, sources-and-cogs 1)
)
