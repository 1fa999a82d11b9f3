"""The drift guard: whether a block's clear pixels look as if an offset of 1000 DN had not been subtracted."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.profile import Profile
from transforms.dpixels import OpticalLayer, Stack
from transforms.grid import PIXEL_M, Block
from transforms.read import Patch

OFFSET_DN = 1000  # ESA S2 PSD, processing baseline 04.00: BOA_ADD_OFFSET -1000 for every band
SIDE = 64  # pixels looked at along a block's longer side; `memory` counts SIDE * SIDE of them
PIXEL_BYTES = 3 * (10 * 2 + 1)  # a scene's values at one of them, and two copies while they are sorted

# Two scenes of one place differ by season, snow, haze and shadow, in some bands more than in others; an offset moves
# all ten by the same. Of 382 real scenes of Korean farmland (means of 200 parcels, four regions) none lay more than 395
# DN above the median of the others in each of its ten bands.
LEAST_DN = 550  # in the band that is moved least
MOST_DN = 1600  # in B02 and B03: snow and cloud move these by more
LEVEL_BANDS = ("B02", "B03")
QUANTILES = (0.5, 0.25)  # of a place's dates, that scenes are held against: the second finds a majority of wrong ones
STEADY_CLASSES = (4, 5, 11)  # plants, bare ground, snow; glint on water and cirrus move all bands by like amounts
LEAST_DATES, LEAST_PX = 5, 20  # that a place, a scene must have to be looked at

# Where all scenes are wrong alike, none differs. Then the darkest pixels tell: plants, water and shade are at 100 to
# 900 DN in B02, B03, B04, B11 and B12, and 1000 above it with the offset left in. Desert is as bright by nature, but
# red: B04 is 1.4 times B02 and more, B12 twice. Snow is dark in B11 and B12.
DARK_SHARE = 0.01  # of a scene's clear pixels
FLOOR_DN = 950
DARK_MOST_DN = 1800  # of B02
DARK_RATIOS = {"B03": 1.3, "B04": 1.25, "B11": 2.2, "B12": 2.0}  # to B02, at most

FAR_SIGMA = 6.0  # fresh snow lies 4 above the mean of the training data


@dataclasses.dataclass(frozen=True)
class Drift:
    """What the guard found in a block.

    Attributes:
      observations: clear ones that were looked at.
      mean, std: of them by band, DN, in the order of the profile's bands; () where there are none.
      sigma: how far each mean lies from the profile's, in its standard deviations.
      scenes: ids of those that lie an offset above others.
      reasons: what is suspected, in words; () for nothing.
    """

    observations: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sigma: tuple[float, ...] = ()
    scenes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For a receipt: numbers rounded, reasons left to its warnings."""
        rounded = {k: [round(v, 3) for v in getattr(self, k)] for k in ("mean", "std", "sigma")}
        return {"observations": self.observations, **rounded, "scenes": list(self.scenes)}


class Guard:
    """Takes a block's stacks as they come and looks at every n-th pixel of each scene, as it lies in its files.

    The pixels are counted from the block's own corner, and only wanted and clear ones of a scene are taken: the result
    does not depend on the height of strips.
    """

    def __init__(self, profile: Profile, block: Block, wanted: NDArray[np.bool_]) -> None:
        self._profile = profile
        step = max(1, -(-max(block.height_px, block.width_px) // SIDE))
        self._rows = np.arange(block.row_px, block.row_px + block.height_px, step)
        self._cols = np.arange(block.col_px, block.col_px + block.width_px, step)
        self._wanted = wanted[::step, ::step]
        self._table = np.ones(256, bool)
        self._table[list(profile.scl_invalid)] = False
        self._values: dict[str, NDArray[np.uint16]] = {}
        self._clear: dict[str, NDArray[np.bool_]] = {}
        self._steady: dict[str, NDArray[np.bool_]] = {}

    @property
    def places(self) -> int:
        """Pixels that are looked at, of each scene at most."""
        return self._wanted.size

    def add(self, stack: Stack) -> None:
        """Looks at the rows of a stack; each pixel of the block may come once."""
        inside = [(p >= r.start) & (p < r.stop) for p, r in ((self._rows, stack.rows), (self._cols, stack.cols))]
        if not (inside[0].any() and inside[1].any()):
            return
        at = np.ix_(*inside)
        for _, layers in stack.days:
            for layer in layers:
                self._look(layer, stack, at, self._rows[inside[0]], self._cols[inside[1]])

    def _look(
        self, layer: OpticalLayer, stack: Stack, at: Any, rows: NDArray[np.int64], cols: NDArray[np.int64]
    ) -> None:
        classes = _picked(layer.scl, stack, rows, cols)
        clear = self._table[classes] & self._wanted[at]
        if not clear.any():
            return
        scene, shape = layer.scene.id, self._wanted.shape
        if scene not in self._values:
            self._values[scene] = np.zeros((*shape, len(layer.bands)), np.uint16)
            self._clear[scene], self._steady[scene] = np.zeros(shape, bool), np.zeros(shape, bool)
        values = np.stack([_picked(patch, stack, rows, cols) for patch in layer.bands], axis=-1).astype(np.uint16)
        if offset := layer.scene.offset_dn:
            values = np.minimum(values, values - np.uint16(offset))  # what is less wraps round to more, and stays
        self._values[scene][at] = values
        clear &= values.all(-1)  # a band of 0 has no data
        self._clear[scene][at] = clear
        self._steady[scene][at] = clear & np.isin(classes, STEADY_CLASSES)

    def verdict(self) -> Drift:
        """What was found in all that was added."""
        scenes = sorted(self._values)
        if not scenes:
            return Drift(0)
        values = np.stack([self._values[s].reshape(-1, self._values[s].shape[-1]) for s in scenes])
        clear, steady = (np.stack([of[s].reshape(-1) for s in scenes]) for of in (self._clear, self._steady))
        return judge(values, clear, steady, scenes, self._profile)


def _picked(patch: Patch, stack: Stack, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
    """(rows, cols) of a file at the centres of 10 m pixels of the tile, 0 outside it."""
    a, _, c, _, e, f = patch.transform
    i = np.floor((stack.tile.top_m - (rows + 0.5) * PIXEL_M - f) / e).astype(np.int64) - patch.row_px
    j = np.floor((stack.tile.left_m + (cols + 0.5) * PIXEL_M - c) / a).astype(np.int64) - patch.col_px
    return patch.data[np.ix_(i, j)]


def judge(
    values: NDArray[np.uint16],
    clear: NDArray[np.bool_],
    steady: NDArray[np.bool_],
    scenes: Sequence[str],
    profile: Profile,
) -> Drift:
    """The guard's verdict on some places.

    Args:
      values: (S, N, bands) DN of S scenes at N places, after the offset rule.
      clear: (S, N) which of them count. steady: which of these are of ground that scenes may be compared on.
      scenes: their ids.
    """
    seen = values[clear].astype(np.float64)
    if not len(seen):
        return Drift(0)
    mean, std = seen.mean(0), seen.std(0)
    sigma = (mean - profile.s2_mean) / profile.s2_std
    wrong = [scene for scene, high in zip(scenes, high_scenes(values, steady, profile.s2_bands), strict=True) if high]
    words = dict(
        zip(
            profile.s2_bands, (f"{band} {s:+.2f}" for band, s in zip(profile.s2_bands, sigma, strict=True)), strict=True
        )
    )
    apart = f"means from the profile's in sigma: {', '.join(words.values())}"
    reasons = []
    if wrong:
        named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        reasons.append(
            f"{len(wrong)} of {len(scenes)} scenes lie about {OFFSET_DN} DN above the others in every band, as if "
            f"their offset had not been subtracted: {named}; {apart}"
        )
    elif floor := dark_floor(values, clear, profile.s2_bands):
        ends = ", ".join(f"{band} {dn:.0f}" for band, dn in floor.items())
        reasons.append(
            f"the darkest pixels of most scenes lie above {FLOOR_DN} DN in every band, as if their offset of "
            f"{OFFSET_DN} had not been subtracted: {ends}; {apart}"
        )
    if far := [words[band] for band, s in zip(profile.s2_bands, sigma, strict=True) if abs(s) > FAR_SIGMA]:
        reasons.append(f"means further from the profile's than any ground, in sigma: {', '.join(far)}")
    return Drift(len(seen), tuple(mean), tuple(std), tuple(sigma), tuple(wrong), tuple(reasons))


def high_scenes(values: NDArray[np.uint16], steady: NDArray[np.bool_], bands: Sequence[str]) -> NDArray[np.bool_]:
    """(S,) which scenes lie an offset above the others at the same places, in all bands. Arguments as `judge`.

    A scene that lies an offset below the others has others that are too high; which these are is told by a second look,
    at how far each lies from those that are left.
    """
    level = [bands.index(band) for band in LEVEL_BANDS]
    suspected = np.zeros(len(values), bool)
    for quantile in QUANTILES:
        moved = _moved(values, steady, steady, quantile, LEAST_DATES)
        with np.errstate(invalid="ignore"):
            suspected |= (moved.min(1) > LEAST_DN) & (moved[:, level].max(1) < MOST_DN)
            below = (moved.max(1) < -LEAST_DN) & (moved[:, level].min(1) > -MOST_DN)
            if below.any():
                suspected |= np.median(moved, axis=1) > -OFFSET_DN / 2
    if not suspected.any() or suspected.all():
        return suspected
    moved = _moved(values, steady, steady & ~suspected[:, None], 0.5, 1)
    with np.errstate(invalid="ignore"):
        high: NDArray[np.bool_] = (np.median(moved, axis=1) > OFFSET_DN / 2) & (moved.min(1) > 0)
    return high if high.any() else suspected


def _moved(
    values: NDArray[np.uint16],
    clear: NDArray[np.bool_],
    trusted: NDArray[np.bool_],
    quantile: float,
    least_dates: int,
) -> NDArray[np.float64]:
    """(S, bands) how far each scene lies above what is usual at its places, in the median of these; NaN for too few.

    Usual is a quantile of what is `trusted` (S, N) there, where that is `least_dates` at least.
    """
    dates = trusted.sum(0)
    ranked = np.sort(np.where(trusted[..., None], values, np.uint16(65535)), axis=0)
    rank = ((np.maximum(dates, 1) - 1) * quantile).astype(np.int64)
    usual = np.take_along_axis(ranked, rank[None, :, None], axis=0)[0].astype(np.int32)
    moved = np.full((len(values), values.shape[2]), np.nan)
    for n, scene in enumerate(values):
        there = clear[n] & (dates >= least_dates)
        if there.sum() >= LEAST_PX:
            moved[n] = np.median(scene[there] - usual[there], axis=0)
    return moved


def dark_floor(values: NDArray[np.uint16], clear: NDArray[np.bool_], bands: Sequence[str]) -> Mapping[str, float]:
    """The dark ends by band where they are those of dark ground with an offset left in, else {}. Arguments as `judge`.

    Of each scene the dark end, of these the median: the few that may be right do not hide the many that are not.
    """
    enough = clear.sum(1) >= LEAST_PX
    if not enough.any():
        return {}
    of_scenes = [np.quantile(v[c], DARK_SHARE, axis=0) for v, c in zip(values[enough], clear[enough], strict=True)]
    ends = dict(zip(bands, np.median(of_scenes, axis=0), strict=True))
    base = ends["B02"]
    if min(ends.values()) < FLOOR_DN or base > DARK_MOST_DN:
        return {}
    if any(ends[band] > ratio * base for band, ratio in DARK_RATIOS.items()):
        return {}
    return ends
