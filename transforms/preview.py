"""The preview: an embedding in three colours, the same ones in every tile of a product."""

import dataclasses
import json

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.profile import Profile
from model.quantise import NO_DATA
from transforms.dpixels import DPixels
from transforms.draws import Place
from transforms.encode import Session, encode_window

FORMAT = "tessera-beam/preview"
VERSION = 1
PAINTED_PX = 1 << 12  # pixels in double precision at once, of each thread: 4 MB of 128 dimensions
_ONE = 1 << 14  # directions are whole numbers of this unit: their sums are exact, whatever the block size

# Typical surface reflectance x 10000 at the height of summer and in winter, in the order of the profile's bands (B04
# B02 B03 B08 B8A B05 B06 B07 B11 B12), and VV, VH as the series stores them. Round numbers from any spectral library:
# they only span the space that colours are drawn from.
_COVERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]] = {
    "water": ((250, 500, 450, 150, 140, 230, 180, 170, 90, 70), (300, 550, 480, 180, 160, 260, 200, 190, 90, 70),
              (2600, 900)),
    "turbid water": ((900, 800, 1100, 500, 450, 900, 600, 600, 150, 100), (1000, 850, 1150, 550, 500, 950, 650, 650,
                     160, 110), (3200, 1200)),
    "bare soil": ((1900, 900, 1300, 2600, 2800, 2200, 2400, 2600, 3600, 3100), (1600, 800, 1100, 2200, 2400, 1900,
                  2100, 2300, 3200, 2800), (5200, 2600)),
    "winter crop": ((400, 300, 700, 4200, 4500, 1100, 3300, 4100, 1900, 950), (700, 450, 800, 3000, 3200, 1200, 2400,
                    2900, 2100, 1200), (5000, 2700)),
    "summer crop": ((350, 280, 650, 4800, 5000, 1000, 3700, 4600, 1700, 800), (1700, 850, 1200, 2400, 2600, 2000, 2200,
                    2400, 3400, 2900), (5600, 3400)),
    "grass": ((600, 400, 800, 3500, 3700, 1200, 2800, 3400, 2300, 1300), (800, 500, 850, 2700, 2900, 1300, 2200, 2600,
              2400, 1500), (4600, 2300)),
    "broadleaf forest": ((250, 200, 450, 3900, 4200, 750, 2900, 3700, 1600, 650), (900, 450, 650, 1900, 2100, 1200,
                         1500, 1800, 2300, 1500), (5900, 4000)),
    "needleleaf forest": ((220, 180, 350, 2500, 2700, 550, 1900, 2400, 1000, 450), (260, 220, 380, 2200, 2400, 600,
                          1700, 2100, 950, 450), (5800, 3900)),
    "town": ((1500, 1200, 1350, 2200, 2300, 1650, 1950, 2100, 2300, 2000), (1450, 1200, 1300, 1950, 2050, 1600, 1750,
             1900, 2200, 2000), (7400, 4500)),
    "snow": ((900, 700, 900, 2500, 2600, 1200, 1800, 2200, 2200, 1500), (9300, 9500, 9400, 8600, 8300, 9100, 8800, 8500,
             900, 700), (4800, 2200)),
    "sand": ((3300, 2000, 2700, 3900, 4000, 3500, 3700, 3900, 4700, 4300), (3200, 1900, 2600, 3800, 3900, 3400, 3600,
             3800, 4600, 4200), (3800, 1500)),
    "wetland": ((600, 500, 750, 2300, 2400, 950, 1800, 2200, 1100, 600), (800, 600, 800, 1400, 1500, 950, 1200, 1400,
                1000, 650), (4300, 2100)),
}  # fmt: skip
REFERENCE = Place("reference", "", 0, 0)  # for samplers that draw: the same draws in every product
_DAYS = np.arange(8, 366, 15)  # 24 days, a clear view every fortnight


@dataclasses.dataclass(frozen=True)
class Colours:
    """A map from embeddings to colours.

    Attributes:
      directions: three rows of `dims` whole numbers in units of 1/_ONE.
      low, high: the values that become 1 and 255, one pair a colour.
    """

    directions: tuple[tuple[int, ...], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, sort_keys=True).encode()


def colours_from_json(data: bytes) -> Colours:
    """Reads what `Colours.to_json` wrote.

    Raises:
      BadInput: not the colours of a preview, or of a newer version.
    """
    try:
        fields = json.loads(data)
    except ValueError as e:
        raise BadInput(f"preview colours that are not JSON: {e}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInput(f"a file in the place of preview colours is not a {FORMAT} record")
    if (version := fields.get("version")) != VERSION:
        raise BadInput(f"preview colours of version {version}: this release reads {VERSION}; use a newer tessera-beam")
    if missing := [f.name for f in dataclasses.fields(Colours) if f.name not in fields]:
        raise BadInput(f"preview colours without {', '.join(missing)}")
    return Colours(tuple(map(tuple, fields["directions"])), tuple(fields["low"]), tuple(fields["high"]))


def reference_pixels() -> DPixels:
    """A strip of typical years: 12 land covers, each at 16 mixtures of its seasons and its neighbour's; (T, 12, 16)."""
    covers = list(_COVERS.values())
    season = (np.cos((_DAYS - 200) / 365.25 * 2 * np.pi) + 1) / 2  # 1 at the height of summer
    n, m, T = len(covers), 16, len(_DAYS)
    bands = np.zeros((T, n, m, 10))
    radar = np.zeros((T, n, m, 2))
    rng = np.random.default_rng(0)
    for i in range(n):
        summer, winter, vvvh = (np.array(x, float) for x in covers[i])
        other = covers[(i + 1) % n]
        for k in range(m):
            share = rng.uniform(0, 0.4)
            late = np.clip(np.roll(season, int(rng.integers(-3, 4))), 0, 1)[:, None]
            own = late * summer + (1 - late) * winter
            beside = late * np.array(other[0], float) + (1 - late) * np.array(other[1], float)
            bands[:, i, k] = ((1 - share) * own + share * beside) * rng.normal(1, 0.03, (T, 1))
            radar[:, i, k] = (1 - share) * vvvh + share * np.array(other[2], float) + rng.normal(0, 250, (T, 2))
    sar = np.clip(radar, 1, 32767).astype(np.int16)
    days = _DAYS.astype(np.int16)
    return DPixels(
        np.clip(np.rint(bands), 1, 65535).astype(np.uint16),
        np.ones((T, n, m), np.uint8),
        _DAYS.astype(np.uint16),
        sar[::2],
        days[::2],
        sar[1::2],
        days[1::2],
    )


def colours_of(session: Session, profile: Profile, micro_batch_px: int) -> Colours:
    """Colours for a model: the three directions in which typical land covers differ most."""
    codes, scale = encode_window(session, profile, REFERENCE, reference_pixels(), None, micro_batch_px)
    x = (codes * scale[..., None]).reshape(-1, codes.shape[-1]).astype(np.float64)
    x0 = x - x.mean(0)
    _, vectors = np.linalg.eigh(x0.T @ x0)
    rows = vectors[:, ::-1].T[:3]
    rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]  # eigenvectors have no sign
    if len(rows) < 3:
        rows = np.concatenate([rows, np.repeat(rows[-1:], 3 - len(rows), 0)])
    directions = np.rint(rows * _ONE)
    seen = x @ directions.T / _ONE
    # Room beyond what was seen: a real landscape is wider than a dozen curves.
    low, high = np.percentile(seen, 2, axis=0), np.percentile(seen, 98, axis=0)
    room = np.maximum((high - low) * 0.1, 1e-6)
    return Colours(
        tuple(tuple(int(v) for v in row) for row in directions),
        tuple(float(np.float32(v)) for v in low - room),
        tuple(float(np.float32(v)) for v in high + room),
    )


def paint(codes: NDArray[np.int8], scale: NDArray[np.float32], colours: Colours) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of codes (H, W, dims) and scale (H, W): 1..255, and 0 where there is no data.

    The projection is a sum of whole numbers in float64, hence exact: a pixel has the same colour in blocks of any size.
    """
    out = np.zeros((*codes.shape[:2], 3), np.uint8)
    directions = np.array(colours.directions, np.float64).T
    low, high = np.array(colours.low), np.array(colours.high)
    step = max(1, PAINTED_PX // max(1, codes.shape[1]))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        there = codes[part, :, 0] != NO_DATA
        if not there.any():
            continue
        size = scale[part][there].astype(np.float64)[:, None] / _ONE
        value = codes[part][there].astype(np.float64) @ directions * size
        out[part][there] = np.clip(np.rint((value - low) / (high - low) * 254), 0, 254).astype(np.uint8) + 1
    return out
