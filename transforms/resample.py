"""Resampling: files of 20 and 30 m brought to the tile's 10 m grid, bilinear as GDAL's warper does it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.grid import PIXEL_M, Tile
from transforms.read import Centres, Patch, bilinear, nearest, read_patch, source_positions
from transforms.scenes import Asset, Scene

CHUNK_PX = 1 << 16  # pixels in double precision at once, of each reader: a few MB (`memory` counts none of them)

Position = NDArray[np.float64]


# ---- radar of 30 m, in floats


def mix_floats(patch: Patch, tile: Tile, rows: range, cols: range, fill: float) -> NDArray[np.float32]:
    """Bilinear at each 10 m pixel's centre of a file in the tile's own CRS; (rows, cols) float32.

    Taps without data are dropped and the rest is renormalised; where the file pixel that holds the centre has no data
    or lies outside, the result is `fill`. Sums are float64, rounded to float32 once (recipe: golden/scenes_aws). The
    patch needs a halo of one pixel.
    """
    v, u = source_positions(patch.transform, tile, rows, cols)
    return _mixed(patch, v[:, None], u[None, :], fill)


def mix_across(scene: Scene, asset: Asset, root: str, centres: Centres, fill: float) -> NDArray[np.float32]:
    """As `mix_floats` for a file in another CRS.

    Args:
      centres: of the points, by PROJ for every one: GDAL's warper interpolates between a few, so that its result
        depends on the window that was asked for (facts, 1.2).

    Raises:
      ReadError: as `read_patch`.
    """
    a, _, c, _, e, f = asset.transform
    r0, r1 = _span((float(centres[1].min()), float(centres[1].max())), f, e, asset.height_px)
    c0, c1 = _span((float(centres[0].min()), float(centres[0].max())), c, a, asset.width_px)
    if r1 <= r0 or c1 <= c0:
        return np.full(centres[0].shape, fill, np.float32)
    patch = read_patch(scene, asset, root, r0, c0, r1 - r0, c1 - c0)
    return _mixed(patch, None, None, fill, centres)


def _span(ends: tuple[float, float], origin: float, step: float, size: int) -> tuple[int, int]:
    """File rows or columns around what lies between two coordinates, one to spare on either side, within the file."""
    first, last = sorted(int(np.floor((v - origin) / step)) for v in ends)
    return max(first - 1, 0), min(last + 2, size)


def _mixed(
    patch: Patch, v: Position | None, u: Position | None, fill: float, centres: Centres | None = None
) -> NDArray[np.float32]:
    """Four taps at v (H, 1) and u (1, W), or at `centres`, in pieces of some rows."""
    height, width = centres[0].shape if centres is not None else (v.size, u.size)  # type: ignore[union-attr]
    ok = patch.valid()
    a, _, c, _, e, f = patch.transform
    out = np.empty((height, width), np.float32)
    step = max(1, CHUNK_PX // width)
    for start in range(0, height, step):
        part = slice(start, start + step)
        if centres is not None:
            out[part] = _four_taps(patch, ok, (centres[1][part] - f) / e, (centres[0][part] - c) / a, fill)
        else:
            assert v is not None and u is not None
            out[part] = _four_taps(patch, ok, v[part], u, fill)
    return out


def _four_taps(
    patch: Patch, ok: NDArray[np.bool_] | None, v: Position, u: Position, fill: float
) -> NDArray[np.float64]:
    """The weighted mean of the taps that have data, at positions v, u in the file's pixels that broadcast."""
    h, w = patch.data.shape
    i, j = np.floor(v - 0.5), np.floor(u - 0.5)
    dv, du = v - 0.5 - i, u - 0.5 - j
    i0, j0 = i.astype(np.int64) - patch.row_px, j.astype(np.int64) - patch.col_px
    total = np.zeros(np.broadcast_shapes(v.shape, u.shape))
    weight = np.zeros(total.shape)
    whole = np.ones(total.shape, bool)
    for di, wi in ((0, 1 - dv), (1, dv)):
        for dj, wj in ((0, 1 - du), (1, du)):
            row, col = i0 + di, j0 + dj
            here = (row >= 0) & (row < h) & (col >= 0) & (col < w)
            at = np.clip(row, 0, h - 1), np.clip(col, 0, w - 1)
            if ok is not None:
                here = here & ok[at]
            share = wi * wj
            with np.errstate(invalid="ignore"):  # an infinite power times no weight: no value, as in GDAL
                total += np.where(here, patch.data[at], 0) * share
            weight += here * share
            whole &= here
    centre = np.floor(v).astype(np.int64) - patch.row_px, np.floor(u).astype(np.int64) - patch.col_px
    held = (centre[0] >= 0) & (centre[0] < h) & (centre[1] >= 0) & (centre[1] < w)
    if ok is not None:
        held = held & ok[np.clip(centre[0], 0, h - 1), np.clip(centre[1], 0, w - 1)]
    # Not divided where no tap is missing: whether others in the window are must not move the last bit.
    mean = np.where(whole, total, total / np.where(weight > 0, weight, 1))
    return np.where(held, mean, fill)


# ---- optical bands, in whole numbers


def write_10_m(
    out: NDArray[np.uint16],
    patches: Sequence[Patch],
    tile: Tile,
    rows: range,
    cols: range,
    mixes: bool,
    offset_dn: int = 0,
) -> None:
    """Writes the DN of a scene's bands at each 10 m pixel into `out` (rows, cols, bands), 0 where there is none.

    Equal to `read.bilinear`, or where `mixes` is False to `read.nearest`, for every file and window; quicker for what
    Sentinel-2 products are: 10 m on the tile's own grid, or 20 m with two of its pixels in one of theirs.

    Args:
      offset_dn: subtracted at last, where a value is not less.
    """
    twins: dict[tuple[Any, ...], list[int]] = {}  # bands that lie on one grid
    for k, p in enumerate(patches):
        key = p.transform, p.row_px, p.col_px, p.data.shape, p.data.dtype, p.nodata, str(p.inside)
        twins.setdefault(key, []).append(k)
    for bands in twins.values():
        patch = patches[bands[0]]
        v, u = source_positions(patch.transform, tile, rows, cols)
        a, _, _, _, e, _ = patch.transform
        at = v[0] % 1, u[0] % 1
        row, col = int(np.floor(v[0])) - patch.row_px, int(np.floor(u[0])) - patch.col_px
        plain = patch.nodata in (None, 0) and patch.data.dtype == np.uint16
        if plain and (a, e) == (PIXEL_M, -PIXEL_M) and at == (0.5, 0.5):
            for k in bands:
                out[..., k] = _less(patches[k].data[row : row + len(rows), col : col + len(cols)], offset_dn)
        elif plain and mixes and (a, e) == (2 * PIXEL_M, -2 * PIXEL_M) and {*at} <= {0.25, 0.75}:
            down, right = int(at[0] > 0.5), int(at[1] > 0.5)
            halo = (
                slice(row - 1, row + (len(rows) + down + 1) // 2 + 1),
                slice(col - 1, col + (len(cols) + right + 1) // 2 + 1),
            )
            _mix_20_m(out, bands, patches, halo, down, right, offset_dn)
        else:
            for k in bands:
                cut = _cut(patches[k], v, u)
                slow = bilinear(cut, tile, rows, cols) if mixes else nearest(cut, tile, rows, cols, fill=0)
                out[..., k] = _less(slow, offset_dn)


def _cut(patch: Patch, v: Position, u: Position) -> Patch:
    """The part of a patch around some positions, one pixel to spare where there is one."""
    cuts, starts = [], []
    for position, first, size in ((v, patch.row_px, patch.data.shape[0]), (u, patch.col_px, patch.data.shape[1])):
        ends = sorted((int(np.floor(position[0])), int(np.floor(position[-1]))))
        starts.append(max(ends[0] - 1 - first, 0))
        cuts.append(slice(starts[-1], min(ends[1] + 2 - first, size)))
    data = patch.data[cuts[0], cuts[1]]
    inside = tuple(
        slice(min(max(s.start - start, 0), n), min(max(s.stop - start, 0), n))
        for s, start, n in zip(patch.inside, starts, data.shape, strict=True)
    )
    return dataclasses.replace(
        patch,
        data=data,
        row_px=patch.row_px + starts[0],
        col_px=patch.col_px + starts[1],
        inside=(inside[0], inside[1]),
    )


def _less(dn: NDArray[Any], offset_dn: int) -> NDArray[np.uint16]:
    """The DN with the offset subtracted where they are not less: what is less wraps round to more, and stays."""
    value: NDArray[np.uint16] = dn.astype(np.uint16, copy=False)
    return np.minimum(value, value - np.uint16(offset_dn)) if offset_dn else value


def _mix_20_m(
    out: NDArray[np.uint16],
    bands: Sequence[int],
    patches: Sequence[Patch],
    halo: tuple[slice, slice],
    down: int,
    right: int,
    offset_dn: int,
) -> None:
    """Bands of 20 m by weights in quarters an axis, sixteenths in all: 16 * 65535 fits 32 bits.

    `halo`: of the files' pixels that the window touches, and one around. `down`, `right`: 1 where it begins in the
    second half of a pixel.
    """
    height, width = (s.stop - s.start for s in halo)
    s = np.empty((len(bands), height, width), np.uint32)
    for n, k in enumerate(bands):
        s[n] = patches[k].data[halo]
    missing = {k: m for k in bands if (m := _missing(patches[k], halo)) is not None} if not s.all() else {}
    three = 3 * s[:, 1:-1]
    three += 2  # makes 8 of 16 in all: half is rounded up
    for y, above in ((0, s[:, :-2]), (1, s[:, 2:])):  # a pixel's first row leans on what is above, its second below
        lines = out[(y - down) % 2 :: 2]
        first = int(y < down)
        d = (three + above)[:, first : first + lines.shape[0]]
        d3 = 3 * d[:, :, 1:-1]
        for x, beside in ((0, d[:, :, :-2]), (1, d[:, :, 2:])):
            part = lines[:, (x - right) % 2 :: 2]
            first = int(x < right)
            total = (d3 + beside)[:, :, first : first + part.shape[1]]
            np.right_shift(total, 4, out=total)
            if offset_dn and not missing:
                np.minimum(total, total - np.uint32(offset_dn), out=total)  # less wraps round to more, and stays
            for n, k in enumerate(bands):
                part[..., k] = total[n]
    for k, gone in missing.items():
        _mend(out[..., k], patches[k].data[halo], gone, down, right)
    if offset_dn and missing:
        for k in bands:
            out[..., k] = _less(out[..., k], offset_dn)


def valid_10_m(scl: Patch, table: NDArray[np.bool_], tile: Tile, rows: range, cols: range) -> NDArray[np.bool_] | None:
    """(rows, cols) what `table` (256,) says of the class at each 10 m pixel, None where it is False everywhere.

    The nearest class counts; outside the file, and where the file has no data, that is class 0.
    """
    v, u = source_positions(scl.transform, tile, rows, cols)
    i, j = (np.floor(p).astype(np.int64) - n for p, n in ((v, scl.row_px), (u, scl.col_px)))
    box = slice(int(i.min()), int(i.max()) + 1), slice(int(j.min()), int(j.max()) + 1)
    valid = table[scl.data[box]]
    if (gone := _missing(scl, box)) is not None:
        valid[gone] = table[0]
    # At the file's resolution first: most windows of a planet lie under cloud or outside the swath on most dates.
    return valid[i - i[0]][:, j - j[0]] if valid.any() else None


def _missing(patch: Patch, box: tuple[slice, slice]) -> NDArray[np.bool_] | None:
    """(h, w) True where a part of a patch has no data, None where all of it has."""
    if patch.nodata == 0:
        found: NDArray[np.bool_] = patch.data[box] == 0  # what lies outside the file is 0 too
    elif patch.nodata is None:
        found = np.ones(patch.data.shape, bool)
        found[patch.inside] = False
        found = found[box]
    else:
        ok = patch.valid()
        found = np.zeros(patch.data[box].shape, bool) if ok is None else ~ok[box]
    return found if found.any() else None


def _mend(
    out: NDArray[np.uint16], source: NDArray[np.generic], missing: NDArray[np.bool_], down: int, right: int
) -> None:
    """Corrects the 10 m pixels around missing 20 m ones: taps dropped, the rest renormalised, centres kept missing."""
    near = missing[:, :-2] | missing[:, 1:-1] | missing[:, 2:]
    near = near[:-2] | near[1:-1] | near[2:]
    y, x = np.nonzero(near)  # of pixels without the halo
    a = np.where(missing, 0, source).astype(np.int64)
    there = (~missing).astype(np.int64)
    for qy in (0, 1):
        for qx in (0, 1):
            row, col = 2 * y + qy - down, 2 * x + qx - right
            inside = (row >= 0) & (row < out.shape[0]) & (col >= 0) & (col < out.shape[1])
            i, j = y[inside] + 1, x[inside] + 1
            taps = [(i, j, 9), (i + 2 * qy - 1, j, 3), (i, j + 2 * qx - 1, 3), (i + 2 * qy - 1, j + 2 * qx - 1, 1)]
            total = sum(share * a[p, q] for p, q, share in taps)
            weight = sum(share * there[p, q] for p, q, share in taps)
            mean = (2 * total + weight) // np.maximum(2 * weight, 1)
            out[row[inside], col[inside]] = np.where(missing[i, j], 0, mean)
