"""Sensors: what Sentinel-2 and Sentinel-1 record of the landscape on one pass, on the grid of one UTM zone."""

import dataclasses
import datetime as dt
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
import shapely

from pipeline.demo.landscape import BANDS, Cover, Floats, Keys, Land, draw, fractal, land, scramble
from pipeline.demo.passes import OpticalPass, RadarPass
from pipeline.demo.seasons import SPECTRA, backscatter, is_vegetation, reflectance, snow_line_m
from transforms.grid import to_crs, to_lonlat

# EPSG:32632: 12.488 E, 45.080 N, in the overlap of 32TQR, 32TQQ and 33TUL. A border of the 256 px steps that blocks
# lie on runs through the island in each of the three, down and across, and one of 1024 px in 32TQR.
CENTRE_M = (774_500, 4_997_740)
TRUTH_EPSG = 32632
BANDS_10M = ("B02", "B03", "B04", "B08")
BANDS_20M = ("B05", "B06", "B07", "B8A", "B11", "B12")
OFFSET_DN = 1000  # ESA, processing baseline 04.00 and later: BOA_ADD_OFFSET
S1_NODATA = -32768.0
SCL_INVALID = (0, 1, 2, 3, 8, 9)  # what the v2 profile masks (model.profile.Profile.scl_invalid)

_ALIGN_M = 20  # windows hold whole pixels of both sizes
_HALO_PX = 2
_HAZE = np.array([5200, 5100, 5150, 5250, 5300, 5350, 5400, 5450, 4300, 3300], np.float32)  # thick cloud, by BANDS

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Ground:
    """The island on the 10 m grid of a zone.

    Attributes:
      epsg: of the zone. size_m: side of the island, a square in UTM zone 32.
      left_m, top_m: corner of the window that holds it, multiples of 20 m.
      u, v: (H, W) float32, metres east and north of the centre, of the pixel centres.
      u20, v20: (H/2, W/2), the same of the 20 m pixels.
      inside: (H, W), whether a pixel's centre is on the island. inside20: the same of the 20 m pixels.
      drift: (H, W) float32, where snow lies deeper or thinner, metres.
      land: the ground with a margin of 2 px on every side.
    """

    epsg: int
    size_m: int
    left_m: int
    top_m: int
    u: Floats
    v: Floats
    u20: Floats
    v20: Floats
    inside: Mask
    inside20: Mask
    drift: Floats
    land: Land

    @property
    def cover(self) -> Codes:
        return self.land.cover[_HALO_PX:-_HALO_PX, _HALO_PX:-_HALO_PX]


def island(size_m: int) -> shapely.Polygon:
    """The island in metres from its centre."""
    return shapely.box(-size_m / 2, -size_m / 2, size_m / 2, size_m / 2)


def _places(epsg: int, left_m: int, top_m: int, step_m: int, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Metres from the centre, in UTM 32, of the pixel centres of a grid in any zone."""
    x = np.broadcast_to(left_m + (np.arange(shape[1]) + 0.5) * step_m, shape)
    y = np.broadcast_to((top_m - (np.arange(shape[0]) + 0.5) * step_m)[:, None], shape)
    if epsg != TRUTH_EPSG:
        x, y = to_crs(*to_lonlat(x, y, f"EPSG:{epsg}"), f"EPSG:{TRUTH_EPSG}")
    return (x - CENTRE_M[0]).astype(np.float32), (y - CENTRE_M[1]).astype(np.float32)


@functools.lru_cache(maxsize=4)  # two zones; some 20 MB each at full size
def ground(epsg: int, size_m: int) -> Ground:
    """The island as zone `epsg` sees it."""
    west, south, east, north = island(size_m).bounds
    lon, lat = to_lonlat(
        [CENTRE_M[0] + u for u in (west, east, east, west)],
        [CENTRE_M[1] + v for v in (south, south, north, north)],
        f"EPSG:{TRUTH_EPSG}",
    )
    x, y = (np.round(a, 3) for a in to_crs(lon, lat, f"EPSG:{epsg}"))  # 1 mm: the way there and back is not exact
    left, right = math.floor(x.min() / _ALIGN_M) * _ALIGN_M, math.ceil(x.max() / _ALIGN_M) * _ALIGN_M
    bottom, top = math.floor(y.min() / _ALIGN_M) * _ALIGN_M, math.ceil(y.max() / _ALIGN_M) * _ALIGN_M
    shape = ((top - bottom) // 10, (right - left) // 10)
    halo_m = 10 * _HALO_PX
    wide = (shape[0] + 2 * _HALO_PX, shape[1] + 2 * _HALO_PX)
    u, v = _places(epsg, left - halo_m, top + halo_m, 10, wide)
    inner = np.s_[_HALO_PX:-_HALO_PX, _HALO_PX:-_HALO_PX]
    u20, v20 = _places(epsg, left, top, 20, (shape[0] // 2, shape[1] // 2))
    half = size_m / 2
    return Ground(
        epsg=epsg,
        size_m=size_m,
        left_m=left,
        top_m=top,
        u=u[inner],
        v=v[inner],
        u20=u20,
        v20=v20,
        inside=np.maximum(np.abs(u[inner]), np.abs(v[inner])) < half,
        inside20=np.maximum(np.abs(u20), np.abs(v20)) < half,
        drift=25 * fractal(u[inner], v[inner], 300, 700),
        land=land(u, v),
    )


def optical_reach(visit: OpticalPass, size_m: int) -> shapely.Geometry:
    """The part of the island that a product shows, in metres from the centre: swath and half."""
    # Descending orbits run from north-north-east to south-south-west: the edge moves 0.21 m east a metre north.
    shift, lean, far = visit.swath * 0.07 * size_m, 0.21, 4 * size_m
    edge = (0.22 if visit.orbit == 22 else -0.56) * size_m + shift
    side = -far if visit.orbit == 22 else far
    swath = shapely.Polygon([(edge - lean * far, -far), (edge + lean * far, far), (side, far), (side, -far)])
    reach = island(size_m).intersection(swath)
    if visit.part == "west":
        reach = reach.intersection(shapely.box(-far, -far, 0.05 * size_m, far))
    elif visit.part == "east":
        reach = reach.intersection(shapely.box(-0.04 * size_m, -far, far, far))
    return reach


def radar_reach(scene: RadarPass, size_m: int) -> shapely.Geometry:
    """The part of the island that a scene shows: all but the south-west corner, which no scene shows, and its slice."""
    half, cut = size_m / 2, 0.14 * size_m
    reach = island(size_m).difference(shapely.Polygon([(-half, -half), (cut - half, -half), (-half, cut - half)]))
    if scene.part == "north":
        reach = reach.intersection(shapely.box(-half, -0.07 * size_m, half, half))
    elif scene.part == "south":
        reach = reach.intersection(shapely.box(-half, -half, half, 0.05 * size_m))
    return reach


def sun_elevation(when: dt.datetime) -> float:
    """Degrees above the horizon at the island, within a degree or two."""
    declination = -23.44 * math.cos(2 * math.pi * (when.timetuple().tm_yday + 10) / 365.25)
    hour = (when.hour + when.minute / 60 + 12 / 15 - 12) * 15
    lat, dec = math.radians(45.08), math.radians(declination)
    height = math.sin(lat) * math.sin(dec) + math.cos(lat) * math.cos(dec) * math.cos(math.radians(hour))
    return math.degrees(math.asin(height))


def _sky(here: Ground, visit: OpticalPass, seed: int) -> tuple[Codes, Floats, Floats]:
    """Clouds over the 20 m pixels: scene class (3 7 8 9 10, or 0 for clear air), opacity, darkness of shadows."""
    salt = 1000 * (seed % 10_000 + 1) + 30 * visit.number
    if visit.part == "east":
        salt -= 30  # both halves look at one sky
    scale = np.float32(1600 / here.size_m)  # clouds and island keep their proportion
    u, v = here.u20 * scale, here.v20 * scale
    # A threshold on noise of deviation 1 that leaves about the wanted share above it.
    level = 4.0 if visit.cloud <= 0 else -9.0 if visit.cloud >= 1 else 0.95 * math.log(1 / visit.cloud - 1) / 1.6

    def thickness(east: float, north: float) -> Floats:
        return fractal(u - np.float32(east), v - np.float32(north), 620, salt, 4) - np.float32(level)

    cloud = thickness(0, 0)
    # One cloud never leaves the north-east corner: there is a place without optical data.
    half = here.size_m / 2
    corner = 0.17 - (half - here.u20 + half - here.v20) / here.size_m
    cloud = np.maximum(cloud, 14 * corner)
    shadow = thickness(-55, 75 / math.tan(math.radians(sun_elevation(visit.datatake)))) > 0
    codes = np.zeros(cloud.shape, np.uint8)
    veil = (fractal(u, v, 1100, salt + 19, 2) > 0.6) if visit.cirrus else np.zeros(cloud.shape, bool)
    codes[veil] = 10
    codes[shadow] = 3
    codes[cloud > -0.16] = 7
    codes[cloud > 0] = 8
    codes[cloud > 0.42] = 9
    opacity = np.clip((cloud + 0.16) * 1.5, 0, 0.96) + 0.07 * (veil & (cloud < 0))
    darkness = np.where(shadow, 0.5, 0).astype(np.float32)
    return codes, opacity.astype(np.float32), darkness


def doubled(a: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """20 m pixels as the 10 m pixels in them."""
    return a.repeat(2, axis=0).repeat(2, axis=1)


def _halved(a: Floats) -> Floats:
    """The mean of the four 10 m pixels of every 20 m pixel."""
    return (a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2]) * np.float32(0.25)


def _bits(here: Ground, step_m: int, shape: tuple[int, ...], key: int) -> Keys:
    """64 random bits a pixel and band, by the pixel's place on the zone's grid: crops of any window agree."""
    rows = np.arange(shape[0], dtype=np.uint64) - np.uint64(here.top_m // step_m % 2**20) + np.uint64(2**21)
    cols = np.arange(shape[1], dtype=np.uint64) + np.uint64(here.left_m // step_m)
    place = (rows << np.uint64(24))[:, None] + cols[None, :]
    bands = np.arange(shape[2], dtype=np.uint64) << np.uint64(48)
    return scramble((place[..., None] | bands) ^ scramble([key]))


def _gauss(bits: Keys) -> Floats:
    """Sum of four uniform numbers, scaled to deviation 1."""
    # Two sums of two 16-bit parts stand side by side in one word; the halves of the result are added.
    low = np.uint64(0x0000FFFF0000FFFF)
    pairs = (bits & low) + ((bits >> np.uint64(16)) & low)
    total = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
    return (total.astype(np.int32) - 131_070).astype(np.float32) * np.float32(math.sqrt(3) / 65_536)


def _blurred(a: Floats) -> Floats:
    """The point spread of the telescope, 0.12 of a neighbour on each side; one pixel is lost all round."""
    a = a[:-2] * np.float32(0.12) + a[1:-1] * np.float32(0.76) + a[2:] * np.float32(0.12)
    out: Floats = a[:, :-2] * np.float32(0.12) + a[:, 1:-1] * np.float32(0.76) + a[:, 2:] * np.float32(0.12)
    return out


def _covers(reach: shapely.Geometry, u: Floats, v: Floats) -> Mask:
    """Whether the places lie in a convex reach."""
    corners = shapely.get_coordinates(shapely.orient_polygons(reach))
    out = np.ones(u.shape, bool)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        out &= (x1 - x0) * (v - y0) - (y1 - y0) * (u - x0) > 0
    return out


@dataclasses.dataclass(frozen=True)
class Optical:
    """One Sentinel-2 product over the island, on the window of a `Ground`.

    Attributes:
      fine: (H, W, 4) uint16 of BANDS_10M, coarse: (H/2, W/2, 6) uint16 of BANDS_20M: DN with the offset in them, 0
        where nothing was seen.
      scl: (H/2, W/2) uint8 scene classes.
    """

    fine: npt.NDArray[np.uint16]
    coarse: npt.NDArray[np.uint16]
    scl: Codes

    @property
    def clear(self) -> Mask:
        """(H, W): where the ground was seen, as the v2 profile counts it: thin cirrus and haze are let through."""
        return np.asarray(doubled(~np.isin(self.scl, SCL_INVALID)))

    @property
    def cloud_cover(self) -> float:
        """Percent of what was seen that is cloud or cirrus, as in the metadata of a product."""
        return 100.0 * float(np.isin(self.scl, (8, 9, 10)).sum()) / max(1, int((self.scl > 0).sum()))


def see_optical(here: Ground, visit: OpticalPass, seed: int) -> Optical:
    """What one Sentinel-2 pass records."""
    day = visit.datatake.date()
    reflected = reflectance(here.land, day)
    line = 8.0 if visit.plain_snow else snow_line_m(day)
    margin = np.s_[_HALO_PX:-_HALO_PX, _HALO_PX:-_HALO_PX]
    snow = (here.land.relief_m[margin] + here.drift > line) & (here.cover != Cover.WATER)
    ground_seen = _blurred(reflected)[1:-1, 1:-1]
    ground_seen += (0.8 * snow)[..., None] * (SPECTRA["snow"] * here.land.light[margin][..., None] - ground_seen)

    codes, opacity, darkness = _sky(here, visit, seed)
    through = np.asarray(doubled(opacity), np.float32)[..., None]
    ground_seen *= 1 - np.asarray(doubled(darkness), np.float32)[..., None]
    ground_seen += through * (_HAZE * (0.85 + 0.3 * through) - ground_seen)

    # What the correction for the air got wrong that day: over dark water reflectance may fall below 0, as in real data.
    keys = (np.uint64(visit.number) << np.uint64(8)) + np.arange(len(BANDS), dtype=np.uint64)
    ground_seen += 140 * (draw(keys, 900 + seed) - 0.6)
    coarse_seen = _halved(ground_seen)
    scl = np.full(codes.shape, 5, np.uint8)
    scl[is_vegetation(coarse_seen)] = 4
    scl[_halved((here.cover == Cover.WATER).astype(np.float32)) > 0.5] = 6
    scl[_halved(snow.astype(np.float32)) > 0.5] = 11
    dark = (_halved(here.land.light[margin]) < 0.78) & (sun_elevation(visit.datatake) < 25)
    scl[dark & (scl < 6)] = 2
    scl = np.where(codes > 0, codes, scl)
    glint = draw(_bits(here, 20, (*scl.shape, 1), 4 * visit.number + 1)[..., 0], seed) < 0.0006
    scl[glint & (scl < 6)] = 1
    observed = here.inside20 & _covers(optical_reach(visit, here.size_m), here.u20, here.v20)
    scl[~observed] = 0

    def numbers(seen: Floats, step_m: int, key: int, kept: Mask) -> npt.NDArray[np.uint16]:
        noise = _gauss(_bits(here, step_m, seen.shape, (seed << 32) + key))
        values = np.rint(seen + noise * (4 + 0.002 * seen)) + (OFFSET_DN + visit.bias_dn)
        return np.where(kept[..., None], np.clip(values, 1, 65_535), 0).astype(np.uint16)

    fine, coarse = ([BANDS.index(b) for b in names] for names in (BANDS_10M, BANDS_20M))
    return Optical(
        fine=numbers(ground_seen[..., fine], 10, 4 * visit.number, np.asarray(doubled(observed))),
        coarse=numbers(coarse_seen[..., coarse], 20, 4 * visit.number + 2, observed),
        scl=scl.astype(np.uint8),
    )


def see_radar(here: Ground, scene: RadarPass, seed: int) -> Floats:
    """What one Sentinel-1 scene records: (H, W, 2) float32 linear gamma0 of VV and VH, -32768 where there is nothing.

    Speckle is that of 4 looks (IW GRDH has 4.4). The last 14 bits of a value are 0, so that files stay small.
    """
    margin = np.s_[_HALO_PX:-_HALO_PX, _HALO_PX:-_HALO_PX]
    power = backscatter(here.land, scene.start.date(), scene.orbit_state == "descending")[margin]
    bits = _bits(here, 10, power.shape, (seed << 32) + 1_000_003 + scene.number)
    product = np.ones(power.shape, np.float32)
    for shift in (0, 16, 32, 48):  # four uniform numbers, each at least 2**-17
        part = (bits >> np.uint64(shift)).astype(np.uint16)
        product *= (part.astype(np.float32) + np.float32(0.5)) * np.float32(2**-16)
    values = (power * (-np.log(product) / 4)).astype(np.float32)
    values = (values.view(np.uint32) & np.uint32(0xFFFFC000)).view(np.float32)
    seen = here.inside & _covers(radar_reach(scene, here.size_m), here.u, here.v)
    out = np.where(seen[..., None], values, np.float32(S1_NODATA))
    if scene.without_vh:
        out[..., 1] = S1_NODATA
    return out
