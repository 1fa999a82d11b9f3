"""Windows of d-pixels whose pixels fall into several groups of tokens, and what they must be equal in."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from slow_samplers import slow_seed, slow_steps

from transforms.dpixels import DPixels
from transforms.draws import Place

PLACE = Place("33TWL", "2024", 512, 1024)
BATCH_PX = 32  # small, so that a window has several batches a group
EVERY_SAMPLER = pytest.mark.parametrize("family", ["v1.0-qat", "v1.1-mpc", "v2"])
FEW = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Fingerprint:
    """In place of a session: codes are a digest of the pixel's token rows, whatever the family."""

    def run(self, batch):
        rows = zip(batch.s2, batch.s2_doy, batch.s1, batch.s1_orbit, batch.s1_doy, strict=True)
        digests = [hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in row)).digest() for row in rows]
        codes = (np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32) & 127).astype(np.int8)
        return codes, codes[:, 0] + np.float32(0.5)


def some_pixels(seed=0, H=12, W=11, T=20, up=6, down=9):
    """A window whose pixels fall into several (t2, t1) groups; some without optical, some without radar."""
    rng = np.random.default_rng(seed)
    cloud = rng.random((H, W))
    masks = (rng.random((T, H, W)) > cloud).astype(np.uint8)
    masks[:, 0, :4] = 0

    def radar(n):
        values = rng.integers(1, 12_000, (n, H, W, 2)).astype(np.int16)
        values[rng.random((n, H, W)) < 0.3] = 0
        values[rng.random((n, H, W, 2)) < 0.1] = 0  # half-zero observations
        values[:, 1:3, 3:5] = 0
        return values

    def days(n):
        return np.roll(np.sort(rng.choice(np.arange(1, 367), n, replace=False)), n // 3)  # over New Year

    return DPixels(
        rng.integers(0, 9000, (T, H, W, 10)).astype(np.uint16),
        masks,
        days(T).astype(np.uint16),
        radar(up),
        days(up).astype(np.int16),
        radar(down),
        days(down).astype(np.int16),
    )


def part(pixels, rows, cols):
    return dataclasses.replace(
        pixels,
        bands=pixels.bands[:, rows, cols],
        masks=pixels.masks[:, rows, cols],
        sar_ascending=pixels.sar_ascending[:, rows, cols],
        sar_descending=pixels.sar_descending[:, rows, cols],
    )


def without_passes(pixels):
    none = np.zeros((0, *pixels.masks.shape[1:], 2), np.int16)
    days = np.zeros(0, np.int16)
    return dataclasses.replace(
        pixels, sar_ascending=none, sar_descending=none, sar_ascending_doy=days, sar_descending_doy=days
    )


def assert_same(got, wanted):
    np.testing.assert_array_equal(got[0], wanted[0])
    assert got[1].tobytes() == wanted[1].tobytes()  # the bits, NaN too


def slow_tokens(pixels, y, x, profile, place=PLACE):
    """One pixel's rows, by facts/tessera.md 1.5: s2, s2_doy, s1, s1_orbit, s1_doy as lists."""

    def chosen(series, valid, sensor, absent):
        at = place.row_px + y, place.col_px + x
        seed = slow_seed(profile.name, place.tile, place.period, sensor, *at)
        return [absent if t is None else series[t] for t in slow_steps(profile.sampler, valid, seed)]

    s2 = [(pixels.bands[t, y, x].tolist(), int(pixels.doys[t])) for t in range(len(pixels.doys))]
    s1 = []
    for orbit, values, doys in (
        (0, pixels.sar_ascending, pixels.sar_ascending_doy),
        (1, pixels.sar_descending, pixels.sar_descending_doy),
    ):
        s1 += [(values[t, y, x].tolist(), orbit, int(doys[t])) for t in range(len(doys))]
    s2 = chosen(s2, pixels.masks[:, y, x].tolist(), "s2", ([0] * 10, 0))
    s1 = chosen(s1, [vv != 0 or vh != 0 for (vv, vh), _, _ in s1], "s1", ([0, 0], 0, 0))
    return [r[0] for r in s2], [r[1] for r in s2], [r[0] for r in s1], [r[1] for r in s1], [r[2] for r in s1]
