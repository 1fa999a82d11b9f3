"""Earth Search `sentinel-2-l2a`: harmonised and raw pixels in one collection, told apart by a flag."""

from model.profile import ES_L2A
from transforms.catalogs.earth_search import KEYS
from transforms.catalogs.source import S2_PIXEL_M, Item, Offset, Source, offset_by_baseline
from transforms.scenes import S2

FLAG = "earthsearch:boa_offset_applied"


def _offset(item: Item, baseline: str) -> Offset:
    """By flag, then by baseline. `raster:bands` says -0.1 for both kinds and is not looked at (trap T9)."""
    flag = item["properties"].get(FLAG)
    if flag is True:
        return Offset(0, f"{FLAG} is true: the provider has subtracted it already")
    rule = offset_by_baseline(baseline)
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
)
