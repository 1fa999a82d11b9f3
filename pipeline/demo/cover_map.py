"""Cover map: the whole demo island by the kinds of ground, from a few labelled pixels and their embeddings."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.windows import Window

from model.errors import BadInput
from pipeline.demo.landscape import CROPS, Cover
from pipeline.demo.planet import Planet

LABELS = 20  # of each class of ground
NEIGHBOURS = 5
SEED = 0
GAP_PX = 8
ZOOM = 2
_AT_ONCE_PX = 1 << 14  # 16 MB of similarities to 280 labels

# What a reader of the picture looks for, and its colour: ochre, light green, dark green, blue, red, grey. Bare soil is
# a field between two crops.
KINDS: dict[str, tuple[tuple[Cover, ...], tuple[int, int, int]]] = {
    "fields": ((*CROPS, Cover.BARE), (228, 190, 92)),
    "grass and marsh": ((Cover.MEADOW, Cover.MARSH), (150, 190, 110)),
    "forest": ((Cover.DECIDUOUS, Cover.EVERGREEN), (28, 98, 58)),
    "water": ((Cover.WATER,), (50, 110, 190)),
    "town and roads": ((Cover.TOWN, Cover.ROAD), (190, 60, 60)),
    "rock": ((Cover.ROCK,), (140, 130, 130)),
}
_KIND_OF = np.zeros(max(Cover) + 1, np.uint8)  # 0 outside, then in the order of KINDS
for _n, (_members, _) in enumerate(KINDS.values(), 1):
    _KIND_OF[[int(c) for c in _members]] = _n
_COLOURS = np.array([(255, 255, 255), *(colour for _, colour in KINDS.values())], np.uint8)


@dataclasses.dataclass(frozen=True)
class CoverMap:
    """The map of one tile's part of the island.

    Attributes:
      found, truth: (H, W) uint8 of `Cover`, 0 where there is no embedding or no island.
      right: share of the unlabelled pixels whose kind of ground (`KINDS`) is right; right_of: of those of each kind.
      labels: how many pixels had one.
    """

    found: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    right: float
    right_of: dict[str, float]
    labels: int


def cover_map(codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]) -> CoverMap:
    """Labels `LABELS` pixels of each class by the truth, and all others by their nearest embeddings.

    Args:
      codes: (D, H, W). scale: (H, W), NaN where there is no embedding; the angle between embeddings does not need it.
      truth: (H, W) uint8 of `Cover`.

    Raises:
      BadInput: no pixel has an embedding and a truth.
    """
    there = np.isfinite(scale) & (truth > 0)
    kind = truth[there]
    if not len(kind):
        raise BadInput("no embedding lies on the island")
    x = codes[:, there].T.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    random = np.random.RandomState(SEED)  # the legacy generator's stream is frozen
    chosen = np.concatenate([random.permutation(np.flatnonzero(kind == c))[:LABELS] for c in np.unique(kind)])
    known = x[chosen]
    guess = np.empty(len(x), np.uint8)
    for start in range(0, len(x), _AT_ONCE_PX):
        like = x[start : start + _AT_ONCE_PX] @ known.T
        near = np.argpartition(-like, min(NEIGHBOURS, len(chosen)) - 1, axis=1)[:, :NEIGHBOURS]
        votes = np.zeros((len(like), len(_KIND_OF)), np.float32)
        rows = np.arange(len(like))
        for column in near.T:
            votes[rows, kind[chosen[column]]] += 1 + like[rows, column]
        guess[start : start + _AT_ONCE_PX] = votes.argmax(1)
    rest = np.ones(len(x), bool)
    rest[chosen] = False
    same = _KIND_OF[guess] == _KIND_OF[kind]
    right_of = {}
    for n, name in enumerate(KINDS, 1):
        of = rest & (_KIND_OF[kind] == n)
        if of.any():
            right_of[name] = float(same[of].mean())
    found = np.zeros_like(truth)
    found[there] = guess
    right = float(same[rest].mean()) if rest.any() else float("nan")
    return CoverMap(found, np.where(there, truth, 0).astype(np.uint8), right, right_of, len(chosen))


def picture(made: CoverMap) -> bytes:
    """A PNG: the truth on the left, the map on the right, by kinds of ground."""
    sides = [np.kron(_COLOURS[_KIND_OF[a]], np.ones((ZOOM, ZOOM, 1), np.uint8)) for a in (made.truth, made.found)]
    gap = np.full((sides[0].shape[0], GAP_PX, 3), 255, np.uint8)
    rgb = np.concatenate([sides[0], gap, sides[1]], axis=1)
    with MemoryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture for people has no place on Earth
        with file.open(driver="PNG", height=rgb.shape[0], width=rgb.shape[1], count=3, dtype="uint8") as png:
            png.write(rgb.transpose(2, 0, 1))
        return bytes(file.read())


def of_tile(earth: Planet, tile: str, embeddings: Path) -> CoverMap:
    """The map of a published tile; `scales.tif` lies beside `embeddings`."""
    island = earth.island(tile)
    row, col, height, width = island
    window = Window(col, row, width, height)
    with rasterio.open(embeddings) as codes, rasterio.open(embeddings.with_name("scales.tif")) as scales:
        return cover_map(codes.read(window=window), scales.read(1, window=window), earth.class_map(tile, island))
