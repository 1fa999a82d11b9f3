"""Waves: the tiles of a long job in parts that run one after another, and each again alone."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Sequence

from model.errors import BadInput

# Tiles up to which zones share a wave. An engine hands out the blocks of a wave in any order, so that the fragments of
# nearly all of its tiles may wait on the store at once: of 500 tiles of 12 GB (220 TB of a planet's 18,400) 6 TB.
TILES = 500

_ZONE = re.compile(r"(\d\d)([C-HJ-NP-X])[A-Z]{2}")  # of a tile's name: UTM zone and latitude band


@dataclasses.dataclass(frozen=True)
class Wave:
    """A part of a job.

    Attributes:
      name: of its zone, `zone-33N`, or of the first and last of those that are joined, `zone-33N-36N`.
      tiles: sorted.
    """

    name: str
    tiles: tuple[str, ...]


def zone_of(tile: str) -> str:
    """UTM zone and hemisphere of a tile, e.g. "33N".

    Raises:
      BadInput: no name of a tile.
    """
    found = _ZONE.fullmatch(tile)
    if found is None:
        raise BadInput(f"tile {tile!r}: names look like 33TWL")
    return found[1] + ("N" if found[2] >= "N" else "S")


def waves_of(tiles: Iterable[str], most_tiles: int = TILES) -> list[Wave]:
    """Tiles by UTM zone and hemisphere: northern zones from west to east, then southern ones.

    Neighbouring zones of a hemisphere are joined while they have at most `most_tiles` together; a zone is never cut,
    for its tiles share scenes, and the catalogue's files are cached by zone where they are cached at all. The same
    tiles always give the same waves.

    Raises:
      BadInput: a name that is none of a tile's, or `most_tiles` below 1.
    """
    if most_tiles < 1:
        raise BadInput(f"waves of {most_tiles} tiles: it must be 1 or more")
    zones: dict[str, list[str]] = {}
    for tile in sorted(set(tiles)):
        zones.setdefault(zone_of(tile), []).append(tile)
    waves = []
    for _, side in itertools.groupby(sorted(zones, key=lambda z: (z[-1], z)), key=lambda z: z[-1]):
        joined: list[str] = []
        for zone in side:
            if joined and sum(len(zones[z]) for z in [*joined, zone]) > most_tiles:
                waves.append(_wave(joined, zones))
                joined = []
            joined.append(zone)
        waves.append(_wave(joined, zones))
    return waves


def _wave(joined: Sequence[str], zones: dict[str, list[str]]) -> Wave:
    ends = [joined[0]] if len(joined) == 1 else [joined[0], joined[-1]]
    return Wave("-".join(["zone", *ends]), tuple(t for zone in joined for t in zones[zone]))


def chosen(waves: Sequence[Wave], names: str) -> list[Wave]:
    """The waves that `--waves` asks for: all where it is "", else those of the names between its commas, in our order.

    Raises:
      BadInput: a name that none of them has; the message gives the nearest.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        return list(waves)
    known = {wave.name: wave for wave in waves}
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0) + [n for n in known if _holds(n, name)]
            raise BadInput(f"--waves {name}: no wave of that name; the nearest: {', '.join(dict.fromkeys(near[::-1]))}")
    return [wave for wave in waves if wave.name in asked]


def _holds(wave: str, name: str) -> bool:
    """Whether a joined wave holds the zone that a name means, so that it is what was wanted."""
    meant = re.search(r"(\d{1,2})([NS]?)", name.upper())
    ends = re.findall(r"(\d\d)([NS])", wave)
    if meant is None or meant[2] not in ("", ends[0][1]):
        return False
    return int(ends[0][0]) <= int(meant[1]) <= int(ends[-1][0])
