"""Passes: when the satellites of the synthetic planet come by, and what is special about each visit."""

import dataclasses
import datetime as dt

import numpy as np

from pipeline.demo.landscape import draw, scramble
from transforms.scenes import ASCENDING, DESCENDING


@dataclasses.dataclass(frozen=True)
class OpticalPass:
    """One Sentinel-2 product a tile.

    Attributes:
      number: place in the schedule; keys its noise.
      datatake: start of the datatake, UTC. `strip_s`: seconds from there to the start of the datastrip.
      platform: "a", "b" or "c".
      orbit: relative, 122 (sees the east) or 22 (sees the west; its edge cuts the island).
      baseline: processing baseline. generated: when the product was made, UTC.
      cloud: share of the island under cloud, about; 0 to 1. cirrus: thin cloud lies over parts of it.
      swath: where the swath's edge lies, -1 to 1: east or west of its mean place.
      part: "west" or "east" where the product is half of a datatake, else "".
      bias_dn: what an older processing put on top of every value.
      left_out: tiles that have no such product.
      plain_snow: snow lies in patches on the plain.
    """

    number: int
    datatake: dt.datetime
    strip_s: int
    platform: str
    orbit: int
    baseline: str
    generated: dt.datetime
    cloud: float
    cirrus: bool
    swath: float
    part: str = ""
    bias_dn: int = 0
    left_out: tuple[str, ...] = ()
    plain_snow: bool = False


@dataclasses.dataclass(frozen=True)
class RadarPass:
    """One Sentinel-1 scene.

    Attributes:
      number: place in the schedule; keys its speckle.
      start: UTC. platform: "a" or "c".
      orbit_state: ascending or descending. relative_orbit: 117 or 95.
      epsg: of the scene's own grid.
      part: "north" or "south" where the scene is one of two slices that overlap, else "".
      without_vh: VH is nodata everywhere.
    """

    number: int
    start: dt.datetime
    platform: str
    orbit_state: str
    relative_orbit: int
    epsg: int
    part: str = ""
    without_vh: bool = False


OVERCAST = dt.date(2024, 11, 13)  # nothing but cloud: eo:cloud_cover is 100
HALVES = dt.date(2024, 6, 29)  # one datatake in two products that share some columns
REPROCESSED = dt.date(2024, 5, 10)  # two products of one datatake and ground; the newer one is right
ONLY_NORTH = dt.date(2024, 8, 18)  # 32TQQ has no product of this day, 32TQR has
SNOW = dt.date(2024, 1, 18)
SLICES = dt.date(2024, 6, 20)  # two consecutive ascending scenes that overlap
NO_VH = dt.date(2024, 9, 16)  # a descending scene whose VH is empty

_FIRST_R122 = dt.datetime(2024, 1, 6, 10, 0, 31, tzinfo=dt.UTC)
_FIRST_R022 = dt.datetime(2024, 1, 18, 10, 10, 19, tzinfo=dt.UTC)
_ASCENDING = dt.datetime(2024, 1, 4, 17, 5, 33, tzinfo=dt.UTC)
_DESCENDING = dt.datetime(2024, 1, 8, 5, 11, 20, tzinfo=dt.UTC)
# Counts of 25 days (five cycles of the pair of Sentinel-2) and of 12 days (one of a Sentinel-1): 2024, then 2025.
_R122_COUNTS = (*range(15), 16, 19, 22, 26)
_R022_COUNTS = (*range(14), 17, 20, 24, 27)
_S1_COUNTS = (0, 3, 5, 8, 10, 14, 16, 18, 21, 24, 26, 28, 38, 46, 54)


def optical(seed: int) -> tuple[OpticalPass, ...]:
    """All Sentinel-2 passes by time: 29 dates in 2024, one of them overcast, 8 in 2025. The seed is the weather."""
    visits = [(_FIRST_R122 + dt.timedelta(days=25 * n), 122, n) for n in _R122_COUNTS]
    visits += [(_FIRST_R022 + dt.timedelta(days=25 * n), 22, n) for n in _R022_COUNTS]
    out: list[OpticalPass] = []
    for start, orbit, n in sorted(visits):
        key = scramble(np.array([(seed << 32) + start.toordinal()]))
        luck, thin, edge = (float(draw(key, salt)[0]) for salt in (1, 2, 3))
        day = start.date()
        summer = 4 <= start.month <= 9
        one = OpticalPass(
            number=len(out),
            datatake=start,
            strip_s=281,
            platform="ab"[n % 2] if start.year == 2024 else "bc"[n % 2],
            orbit=orbit,
            baseline="05.10" if day < dt.date(2024, 7, 23) else "05.11",
            generated=start + dt.timedelta(hours=5, minutes=int(50 * luck)),
            cloud=1.0 if day == OVERCAST else max(0.0, (luck - 0.35) * (0.8 if summer else 1.25)),
            cirrus=thin < 0.3,
            swath=2 * edge - 1,
            left_out=("32TQQ",) if day == ONLY_NORTH else (),
            plain_snow=day == SNOW,
        )
        if day == HALVES:
            one = dataclasses.replace(one, part="west", cloud=0.12)
            later = {"number": len(out) + 1, "part": "east", "strip_s": one.strip_s + 12}
            out += [one, dataclasses.replace(one, **later)]  # type: ignore[arg-type]
        elif day == REPROCESSED:
            one = dataclasses.replace(one, cloud=0.2)
            again = one.generated + dt.timedelta(days=280)
            newer = {"number": len(out) + 1, "baseline": "05.11", "generated": again, "strip_s": one.strip_s + 1}
            out += [dataclasses.replace(one, bias_dn=60), dataclasses.replace(one, **newer)]  # type: ignore[arg-type]
        else:
            out.append(one)
    return tuple(out)


def radar() -> tuple[RadarPass, ...]:
    """All Sentinel-1 scenes by time, ascending in zone 32, descending in zone 33; 12 dates of each in 2024."""
    visits = [(_ASCENDING + dt.timedelta(days=12 * n), ASCENDING) for n in _S1_COUNTS]
    visits += [(_DESCENDING + dt.timedelta(days=12 * n), DESCENDING) for n in _S1_COUNTS]
    out: list[RadarPass] = []
    for start, state in sorted(visits):
        ascending = state == ASCENDING
        one = RadarPass(
            number=len(out),
            start=start,
            platform="c" if start.year > 2024 and not ascending else "a",
            orbit_state=state,
            relative_orbit=117 if ascending else 95,
            epsg=32632 if ascending else 32633,
            without_vh=start.date() == NO_VH,
        )
        if start.date() == SLICES:  # an ascending satellite sees the south first
            after = one.start + dt.timedelta(seconds=25)
            out += [
                dataclasses.replace(one, part="south"),
                dataclasses.replace(one, part="north", number=len(out) + 1, start=after),
            ]
        else:
            out.append(one)
    return tuple(out)
