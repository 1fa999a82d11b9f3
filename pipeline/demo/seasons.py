"""Seasons: what the ground reflects and scatters on a day of the year."""

import dataclasses
import datetime as dt
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.demo.landscape import Cover, Floats, Land, draw

# Surface reflectance x 10,000 by BANDS, B02 to B12: typical values after the USGS and ECOSTRESS spectral libraries,
# rounded; the demo wants believable shapes, not measured ones.
_SPECTRA: dict[str, tuple[float, ...]] = {
    "leaf": (240, 560, 300, 950, 2900, 3750, 4050, 4250, 1900, 850),
    "broadleaf": (190, 430, 230, 780, 2450, 3200, 3450, 3650, 1550, 620),
    "needle": (130, 270, 160, 440, 1350, 1700, 1850, 1950, 780, 330),
    "reed": (420, 640, 720, 1080, 1750, 2050, 2250, 2400, 2000, 1250),
    "straw": (820, 1240, 1720, 2080, 2330, 2520, 2780, 3000, 3500, 2500),
    "twigs": (430, 560, 660, 900, 1200, 1350, 1500, 1650, 1900, 1250),
    "clay": (900, 1230, 1620, 1850, 2000, 2120, 2280, 2420, 3100, 2700),
    "peat": (420, 560, 720, 860, 970, 1060, 1180, 1280, 1750, 1500),
    "shallow": (780, 1020, 760, 620, 400, 360, 300, 260, 90, 45),
    "deep": (470, 450, 250, 190, 130, 120, 95, 85, 32, 14),
    "silt": (720, 980, 900, 820, 520, 470, 380, 340, 95, 48),
    "tile": (620, 830, 1500, 1800, 1950, 2050, 2200, 2300, 2600, 2450),
    "slab": (1750, 1900, 2020, 2100, 2180, 2230, 2320, 2360, 2500, 2350),
    "asphalt": (780, 860, 930, 980, 1020, 1050, 1100, 1130, 1350, 1280),
    "sand": (1750, 2180, 2620, 2820, 2950, 3020, 3160, 3260, 3950, 3500),
    "limestone": (1900, 2150, 2400, 2550, 2650, 2700, 2800, 2850, 3300, 2900),
    "snow": (8900, 8800, 8700, 8600, 8400, 8200, 7900, 7600, 950, 700),
}
SPECTRA: dict[str, Floats] = {name: np.array(values, np.float32) for name, values in _SPECTRA.items()}


@dataclasses.dataclass(frozen=True)
class State:
    """How every parcel stands on a day, (P,) float32 each.

    Attributes:
      green: share of green cover, 0 to 1.
      dry: share of what is not green that is straw or litter instead of soil.
      flooded: share under water.
    """

    green: Floats
    dry: Floats
    flooded: Floats


def _rise(day: Floats, at: float, width: float) -> Floats:
    """0 before, 1 after."""
    return np.asarray(1 / (1 + np.exp((at - day) / width)), np.float32)


def state(land: Land, day: dt.date) -> State:
    """The parcels of `land` on a day; a parcel is early or late, and thrives or not, by its own key and the year."""
    keys, cover = land.key_of, land.cover_of
    ahead = 16 * (draw(keys, 20) - 0.5) + 6 * (draw(keys, 100 + day.year) - 0.5) + (4 if day.year % 2 else 0)
    t = (day.timetuple().tm_yday + ahead).astype(np.float32)
    vigour = 0.86 + 0.14 * draw(keys, 200 + day.year)
    summer = np.exp(-(((t - 185) / 75) ** 2))
    # Alfalfa is cut every 38 days from April to October.
    cut = np.mod(t - 105 + 20 * draw(keys, 21), 38) / 38
    growing = (t > 105) & (t < 290)
    zero = np.zeros_like(t)
    green: dict[Cover, npt.NDArray[Any]] = {
        Cover.WHEAT: 0.22 + 0.74 * _rise(t, 82, 11) * (1 - _rise(t, 156, 6)) - 0.20 * _rise(t, 160, 6)
        + 0.18 * _rise(t, 322, 10),
        Cover.MAIZE: 0.06 + 0.92 * _rise(t, 158, 8) * (1 - _rise(t, 244, 8)),
        Cover.RICE: 0.05 + 0.88 * _rise(t, 172, 8) * (1 - _rise(t, 252, 7)),
        Cover.ALFALFA: np.where(growing, 0.32 + 0.66 * np.minimum(1, cut * 1.7), 0.42),
        Cover.SOY: 0.06 + 0.80 * _rise(t, 176, 9) * (1 - _rise(t, 258, 9)),
        Cover.DECIDUOUS: 0.12 + 0.85 * _rise(t, 103, 7) * (1 - _rise(t, 298, 11)),
        Cover.EVERGREEN: 0.90 + 0.06 * summer,
        Cover.MEADOW: 0.42 + 0.36 * _rise(t, 92, 12) * (1 - _rise(t, 296, 16)) - 0.16 * summer,
        Cover.MARSH: 0.16 + 0.44 * _rise(t, 132, 14) * (1 - _rise(t, 282, 16)),
        Cover.TOWN: 0.08 + 0.12 * _rise(t, 103, 9) * (1 - _rise(t, 298, 11)),
    }  # fmt: skip
    dry: dict[Cover, npt.NDArray[Any]] = {
        Cover.WHEAT: _rise(t, 150, 6) * (1 - _rise(t, 214 + 30 * float(day.year % 2), 7)),
        Cover.MAIZE: 0.9 * _rise(t, 240, 7) * (1 - _rise(t, 300, 8)),
        Cover.RICE: 0.85 * _rise(t, 248, 6) * (1 - _rise(t, 310, 9)),
        Cover.SOY: 0.8 * _rise(t, 254, 7) * (1 - _rise(t, 292, 7)),
        Cover.ALFALFA: zero + 0.25,
        Cover.MEADOW: 0.3 + 0.5 * summer,
        Cover.MARSH: zero + 0.9,
    }
    flooded: dict[Cover, npt.NDArray[Any]] = {
        Cover.RICE: 0.92 * _rise(t, 112, 3) * (1 - _rise(t, 178, 7)),
        Cover.MARSH: zero + 0.18,
    }

    def pick(by_cover: dict[Cover, npt.NDArray[Any]]) -> Floats:
        out = np.zeros_like(t)
        for what, values in by_cover.items():
            here = cover == what
            out[here] = values[here]
        return np.clip(out, 0, 1)

    return State(pick(green) * vigour, pick(dry), pick(flooded))


def _grounds(land: Land) -> tuple[Floats, Floats]:
    """What a parcel is without leaves, and its leaves: (P, 10) each."""
    cover, keys = land.cover_of, land.key_of
    tone, shade = draw(keys, 30)[:, None], draw(keys, 31)[:, None]

    def between(one: str, other: str, share: Floats) -> Floats:
        return SPECTRA[one] + share * (SPECTRA[other] - SPECTRA[one])

    bare = between("peat", "clay", 0.25 + 0.75 * tone)
    leaves = SPECTRA["leaf"] * (0.88 + 0.24 * shade)
    for what, ground in (
        (Cover.WATER, between("silt", "shallow", tone)),
        (Cover.TOWN, np.where(shade < 0.72, between("tile", "clay", 0.5 * tone), between("asphalt", "slab", tone))),
        (Cover.ROAD, between("asphalt", "clay", 0.3 * tone)),
        (Cover.BARE, between("clay", "sand", 0.55 + 0.45 * tone)),
        (Cover.ROCK, between("limestone", "clay", 0.5 * tone)),
        (Cover.DECIDUOUS, SPECTRA["twigs"] * (0.85 + 0.3 * tone)),
        (Cover.EVERGREEN, SPECTRA["twigs"] * (0.7 + 0.2 * tone)),
    ):
        bare = np.where((cover == what)[:, None], ground, bare)
    for what, plant in ((Cover.DECIDUOUS, "broadleaf"), (Cover.EVERGREEN, "needle"), (Cover.MARSH, "reed")):
        leaves = np.where((cover == what)[:, None], SPECTRA[plant] * (0.84 + 0.32 * shade), leaves)
    maize = (cover == Cover.MAIZE)[:, None]
    leaves = np.where(maize, leaves * np.linspace(1.1, 0.9, 10, dtype=np.float32), leaves)
    return bare.astype(np.float32), leaves.astype(np.float32)


def reflectance(land: Land, day: dt.date) -> Floats:
    """Surface reflectance x 10,000 of every place without snow, (H, W, 10) float32, bands as `landscape.BANDS`."""
    now = state(land, day)
    bare, leaves = _grounds(land)
    green, dry, flooded = now.green[:, None], now.dry[:, None], now.flooded[:, None]
    ground = bare + dry * (SPECTRA["straw"] - bare)
    table = ground + green * (leaves - ground)
    table += flooded * (1 - 0.8 * green) * (SPECTRA["silt"] * 0.8 - table)
    out: Floats = table[land.parcel]
    # Water darkens with its depth, which goes on within a parcel.
    deep = land.depth[..., None]
    out += (land.cover == Cover.WATER)[..., None] * deep * (SPECTRA["deep"] - out)
    out *= land.light[..., None]
    return out


def snow_line_m(day: dt.date) -> float:
    """Height above which snow lies; under 0 on days when the plain is white too."""
    from_midwinter = min((day - dt.date(day.year, 1, 20)).days % 365, (dt.date(day.year, 1, 20) - day).days % 365)
    return 60 + 2.6 * from_midwinter


# Linear gamma0 in dB without leaves and at full green, VV and VH: after Vreugdenhil et al. 2018 (crops), rounded.
_BACKSCATTER_DB: dict[Cover, tuple[float, float, float, float]] = {
    Cover.WATER: (-20.5, -27.5, -20.5, -27.5),
    Cover.WHEAT: (-9.5, -17.5, -14.0, -19.5),  # the stems of ripening cereals absorb VV
    Cover.MAIZE: (-11.0, -19.0, -8.5, -13.8),
    Cover.RICE: (-11.5, -19.5, -9.0, -15.5),
    Cover.ALFALFA: (-11.5, -19.0, -10.0, -15.5),
    Cover.SOY: (-11.0, -19.0, -8.8, -15.0),
    Cover.DECIDUOUS: (-9.6, -14.6, -9.0, -15.2),
    Cover.EVERGREEN: (-8.8, -14.0, -8.6, -13.8),
    Cover.MEADOW: (-12.0, -19.5, -10.8, -16.8),
    Cover.MARSH: (-12.5, -19.0, -11.0, -16.5),
    Cover.TOWN: (-3.0, -10.0, -3.2, -10.2),
    Cover.ROAD: (-13.0, -21.0, -13.0, -21.0),
    Cover.BARE: (-14.0, -22.5, -14.0, -22.5),
    Cover.ROCK: (-8.0, -15.5, -8.0, -15.5),
}


def backscatter(land: Land, day: dt.date, descending: bool) -> Floats:
    """Mean linear gamma0 power of every place, (H, W, 2) float32: VV, VH, before speckle."""
    now = state(land, day)
    ends = np.zeros((max(Cover) + 1, 4), np.float32)
    for what, values in _BACKSCATTER_DB.items():
        ends[what] = values
    bare, full = ends[land.cover_of, :2], ends[land.cover_of, 2:]
    decibel = bare + now.green[:, None] * (full - bare)
    decibel += now.flooded[:, None] * (1 - now.green[:, None]) * (np.array([-19.5, -27.0], np.float32) - decibel)
    decibel += 1.6 * (draw(land.key_of, 40 + descending)[:, None] - 0.5)
    town = (land.cover_of == Cover.TOWN)[:, None]
    decibel += town * 5 * (draw(land.key_of, 42 + descending)[:, None] - 0.5)  # walls that face the radar, or do not
    table = np.power(np.float32(10), decibel / 10).astype(np.float32)
    out: Floats = table[land.parcel]
    slope = land.light[..., None] - 1
    out *= np.clip(1 + (-0.5 if descending else 0.5) * slope, 0.6, 1.6)
    return out


def is_vegetation(reflected: Floats) -> npt.NDArray[np.bool_]:
    """Where a scene classifier would say vegetation: NDVI above 0.35; `reflected` as `reflectance` gives it."""
    red, infrared = reflected[..., 2], reflected[..., 6]
    return np.asarray(infrared - red > 0.35 * (infrared + red))
