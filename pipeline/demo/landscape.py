"""Landscape: the ground of the synthetic planet, a function of place and day, in metres from its centre.

Everything is computed from coordinates and a seed, never drawn in order, so that two grids see the same ground.
"""

import dataclasses
import enum
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")  # by wavelength


class Cover(enum.IntEnum):
    """What the ground is; 0 is outside the island."""

    OUTSIDE = 0
    WATER = 1
    WHEAT = 2
    MAIZE = 3
    RICE = 4
    ALFALFA = 5
    SOY = 6
    DECIDUOUS = 7
    EVERGREEN = 8
    MEADOW = 9
    MARSH = 10
    TOWN = 11
    ROAD = 12
    BARE = 13
    ROCK = 14


CROPS = (Cover.WHEAT, Cover.MAIZE, Cover.RICE, Cover.ALFALFA, Cover.SOY)


@dataclasses.dataclass(frozen=True)
class Land:
    """The ground under an array of places.

    Attributes:
      cover: (H, W) uint8 of `Cover`.
      parcel: (H, W) int32 index into the arrays below; a parcel is a field, a roof, a depth of water, a stand of trees.
      relief_m: (H, W) height above the plain.
      depth: (H, W) of water, 0 shallow to 1 deep; 0 on land.
      light: (H, W) brightness by slope and texture, around 1.
      cover_of: (P,) uint8. key_of: (P,) uint64, from which a parcel draws its properties.
    """

    cover: npt.NDArray[np.uint8]
    parcel: npt.NDArray[np.int32]
    relief_m: Floats
    depth: Floats
    light: Floats
    cover_of: npt.NDArray[np.uint8]
    key_of: Keys


def scramble(keys: npt.ArrayLike) -> Keys:
    """splitmix64 (Steele, Lea and Flood 2014): 64 well mixed bits of each key."""
    z = np.asarray(keys, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed


def draw(keys: Keys, salt: int) -> Floats:
    """One number in [0, 1) a key; another one for every salt."""
    bits = scramble(keys ^ scramble(np.array([salt]))) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2**-24)


def ripples(u: Floats, v: Floats, wavelength_m: float, salt: int, waves: int = 9) -> Floats:
    """Smooth noise of about mean 0 and deviation 1: plane waves of near wavelengths in all directions."""
    turn, phase, stretch = (draw(np.arange(waves, dtype=np.uint64), 3 * salt + i) for i in range(3))
    out = np.zeros_like(u)
    for i in range(waves):
        angle = 2 * math.pi * (i + float(turn[i])) / waves
        k = 2 * math.pi / (wavelength_m * (0.6 + 0.9 * float(stretch[i])))
        out += np.sin(np.float32(k * math.cos(angle)) * u + np.float32(k * math.sin(angle)) * v + 6.2831855 * phase[i])
    return out * np.float32(math.sqrt(2 / waves))


def fractal(u: Floats, v: Floats, wavelength_m: float, salt: int, octaves: int = 3) -> Floats:
    """`ripples` of halving wavelength and weight; deviation about 1."""
    out = sum(ripples(u, v, wavelength_m / 2**i, salt + 17 * i) * np.float32(0.5**i) for i in range(octaves))
    return np.asarray(out, np.float32) / np.float32(math.sqrt(sum(0.25**i for i in range(octaves))))


def _rotated(u: Floats, v: Floats, degrees: float) -> tuple[Floats, Floats]:
    c, s = np.float32(math.cos(math.radians(degrees))), np.float32(math.sin(math.radians(degrees)))
    return c * u + s * v, c * v - s * u


def _key(kind: int, *parts: npt.NDArray[np.integer]) -> Keys:
    """One key from a kind and whole numbers, negative ones too."""
    out = np.broadcast_to(scramble([kind]), parts[0].shape)  # scrambled: small kinds and parts would meet under ^
    for part in parts:
        out = scramble(out ^ part.astype(np.int64).view(np.uint64))
    return out


def _river() -> npt.NDArray[np.float32]:
    """Centre line (n, 2) every 16 m: a sine-generated curve, the shape of real meanders (Langbein and Leopold 1966)."""
    step_m, loop_m = 16.0, 1500.0
    s = np.arange(-4200, 4200, step_m)
    bend = math.radians(84) * (1 + 0.12 * np.sin(s / 900)) * np.sin(2 * math.pi * s / loop_m + 0.5)
    heading = math.radians(-17) + bend
    u, v = np.cumsum(np.cos(heading)) * step_m, np.cumsum(np.sin(heading)) * step_m
    middle = len(s) // 2
    return np.stack([u - u[middle] - 60, v - v[middle] + 30], axis=1).astype(np.float32)


def _to_river(u: Floats, v: Floats) -> Floats:
    """Distance in metres from the river's centre line, positive to the left of the flow."""
    line: Floats = _river()
    along: Floats = np.gradient(line, axis=0)
    along = (along / np.hypot(along[:, :1], along[:, 1:])).astype(np.float32)
    line, along = (a[(np.abs(line) < 2600).all(axis=1)] for a in (line, along))  # the island and some margin
    points = np.stack([u.ravel(), v.ravel()], axis=1)
    out = np.empty(len(points), np.float32)
    for start in range(0, len(points), 4096):  # all points against all vertices at once would take 100 MB
        part = points[start : start + 4096]
        near = ((line**2).sum(1) - 2 * part @ line.T).argmin(1)
        across = part - line[near]
        out[start : start + 4096] = along[near, 0] * across[:, 1] - along[near, 1] * across[:, 0]
    return out.reshape(u.shape)


def _fields(u: Floats, v: Floats, degrees: float, block_m: tuple[float, float], kind: int) -> tuple[Keys, Floats]:
    """Parcels of a drained plain, staggered blocks cut into strips: key, and metres from the block's edge."""
    wide, high = block_m
    p, q = _rotated(u + 22 * ripples(u, v, 1300, kind), v + 22 * ripples(u, v, 1100, kind + 1), degrees)
    i = np.floor(p / wide)
    q = q + high * draw(_key(kind, i), 1)
    j = np.floor(q / high)
    block = _key(kind, i, j)
    x, y = p / wide - i, q / high - j
    strips = 1 + np.floor(draw(block, 2) * 5)
    along = np.where(draw(block, 3) < 0.65, x, y) ** (0.8 + 0.5 * draw(block, 4))  # strips of unequal width
    edge = np.minimum(np.minimum(x, 1 - x) * wide, np.minimum(y, 1 - y) * high)
    return _key(kind + 2, block.view(np.int64), np.floor(along * strips)), edge


def relief_m(u: Floats, v: Floats) -> Floats:
    """Height above the plain: one hill in the north-west, with spurs."""
    r2 = (u + 1380) ** 2 + (v - 1440) ** 2
    spurs = 1 + 0.16 * fractal(u, v, 520, 5, 4)
    return np.asarray(330 * np.exp(-r2 / (2 * 440.0**2)) * spurs, np.float32)


def land(u: Floats, v: Floats) -> Land:
    """The ground at places `u` metres east and `v` metres north of the centre, (H, W) float32 each."""
    hill = relief_m(u, v)
    rough = fractal(u, v, 260, 40, 4)
    side = _to_river(u, v)
    distance = np.abs(side)

    south, south_edge = _fields(u, v, 24, (430, 270), 100)
    north, north_edge = _fields(u, v, -13, (540, 300), 200)
    field = np.where(side < 0, south, north)
    edge = np.where(side < 0, south_edge, north_edge)
    weights = np.cumsum([0.26, 0.27, 0.19, 0.14])  # soy takes the rest
    cover = np.array(CROPS, np.uint8)[np.searchsorted(weights, draw(field, 5), side="right")]
    key = field

    def paint(where: npt.NDArray[np.bool_], what: Cover, keys: Keys) -> None:
        nonlocal key
        cover[where] = what
        key = np.where(where, keys, key)

    def patches(size_m: float, kind: int) -> Keys:
        return _key(kind, np.floor((u + 0.3 * size_m * rough) / size_m), np.floor((v - 0.3 * size_m * rough) / size_m))

    lane = draw(_key(7, field.view(np.int64)), 6) < 0.8
    paint((edge < 8) & lane, Cover.MEADOW, patches(400, 300))
    paint((distance < 150 + 70 * rough) & (rough + 0.4 > 0), Cover.MEADOW, patches(90, 301))
    # Woods: along the river, and one by itself in the east.
    wood = np.hypot((u - 1010) / 1.4, v - 560) < 215 + 55 * rough
    paint(((distance < 105 + 60 * rough) & (ripples(u, v, 420, 60) > -0.15)) | wood, Cover.DECIDUOUS, patches(34, 302))
    # The town: a square grid of blocks that frays at the edge.
    a, b = _rotated(u - 330, v - 520, 31)
    town = (np.hypot(a * 0.85, b) < 330 + 70 * rough) & (side > 50)
    street = (np.mod(a, 74) < 11) | (np.mod(b + 20, 92) < 11) | (np.abs(np.hypot(a, b) - 120) < 8)
    roof = _key(303, np.floor(a / 24), np.floor(b / 24))
    paint(town, Cover.TOWN, roof)
    paint(town & (draw(roof, 7) < 0.2), Cover.MEADOW, _key(304, np.floor(a / 60), np.floor(b / 60)))
    paint(town & street, Cover.ROAD, patches(500, 305))
    # Hill: deciduous foot, evergreen slope, bare top.
    paint(hill > 16 + 7 * rough, Cover.MEADOW, patches(120, 306))
    paint(hill > 34 + 12 * rough, Cover.DECIDUOUS, patches(34, 307))
    paint(hill > 92 + 26 * rough, Cover.EVERGREEN, patches(40, 308))
    paint(hill > 226 + 26 * rough, Cover.ROCK, patches(60, 309))
    # Roads out of town, one of them over the river.
    roads = np.full(u.shape, 1e9, np.float32)
    for pu, pv, degrees in ((330, 520, 31), (-90, -200, -68), (-300, -760, 24)):
        across = _rotated(u - pu, v - pv, degrees)[1] + 14 * ripples(u, v, 1500, 70)
        roads = np.minimum(roads, np.abs(across))
    road = (roads < 7.5) & (hill < 60)
    # Lagoon, with marsh on its shore and islands in it, behind a bar of sand; the sea beyond.
    shore = (u - v) * np.float32(math.sqrt(0.5)) - 1180 + 130 * fractal(u, v, 900, 80, 3)
    creek = np.abs(ripples(u, v, 330, 90) + 0.5 * ripples(u, v, 150, 91))
    depth = np.clip(shore / 330 - 0.35 * fractal(u, v, 420, 92), 0, 1)
    paint(shore > -150 + 40 * rough, Cover.MARSH, patches(70, 310))
    water = (shore > 0) | ((shore > -120) & (creek < 0.14))
    water &= ~((shore > 60) & (shore < 420) & (fractal(u, v, 380, 93) > 1.05 + 0.1 * rough))
    paint(water, Cover.WATER, patches(900, 311))
    bar = shore - 585 - 40 * ripples(u, v, 1600, 94)
    paint(np.abs(bar) < 62 + 14 * rough, Cover.BARE, patches(50, 312))
    paint(np.abs(bar + 18) < 22 + 14 * rough, Cover.MEADOW, patches(50, 313))
    paint(bar > 62 + 14 * rough, Cover.WATER, patches(900, 314))
    depth = np.where(bar > 0, np.clip(0.25 + bar / 420, 0, 1), depth)
    # River, gravel bars on the inside of its bends, an oxbow that it left behind.
    paint((distance < 62 + 16 * rough) & (ripples(u, v, 300, 95) > 0.55) & (shore < -100), Cover.BARE, patches(40, 315))
    width = 34 + 7 * ripples(u, v, 700, 96) + np.clip((shore + 700) / 16, 0, 40)
    paint((distance < width) & (shore < 0), Cover.WATER, patches(900, 316))
    depth = np.where(shore < 0, np.clip(0.55 * (1 - distance / width), 0, 1), depth)
    ring = np.hypot(u + 560, (v + 640) * 1.25)
    bow = v - 0.4 * u < -480 + 12 * rough
    oxbow = (np.abs(ring - 235) < 26) & bow
    paint((np.abs(ring - 235) < 58 + 12 * rough) & bow, Cover.MARSH, patches(60, 317))
    paint(oxbow, Cover.WATER, patches(900, 318))
    depth = np.where(oxbow, 0.8, depth)
    paint(road & (shore < -160), Cover.ROAD, patches(500, 319))

    # A parcel has one cover, so that its properties can stand in a table.
    keys, first, parcel = np.unique(_key(320, key.view(np.int64), cover), return_index=True, return_inverse=True)
    # Slopes as the mid-morning sun sees them, from the south-east.
    east = relief_m(u + 5, v) - relief_m(u - 5, v)
    north_ = relief_m(u, v + 5) - relief_m(u, v - 5)
    texture = np.where(np.isin(cover, (Cover.WATER, Cover.ROAD)), 0.006, 0.02) * fractal(u, v, 90, 97, 2)
    light = 1 + 0.055 * np.clip(east - north_, -9, 9) + texture
    return Land(
        cover=cover,
        parcel=parcel.reshape(u.shape).astype(np.int32),
        relief_m=hill,
        depth=np.where(cover == Cover.WATER, depth, 0).astype(np.float32),
        light=light.astype(np.float32),
        cover_of=cover.ravel()[first],
        key_of=keys,
    )
