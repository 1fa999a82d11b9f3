"""Records that are made up, for tests of probes: seasons by class, gaps by chance."""

import numpy as np

from model.records import Records, offsets_of


def records(n=30, seed=0, dates=(6, 20), passes=(0, 9), valid=0.7, classes=3):
    """N pixels: class k peaks k / classes of a year later. Ragged; the first step is valid always."""
    rng = np.random.default_rng(seed)
    t2, t1 = rng.integers(*dates, n), rng.integers(*passes, n)
    doy2 = np.concatenate([np.sort(rng.choice(np.arange(1, 366), t, False)) for t in t2])
    doy1 = np.concatenate([np.sort(rng.choice(np.arange(1, 366), t, False)) for t in t1] or [[]])
    of = np.arange(n) % classes
    season = np.cos(2 * np.pi * (doy2 / 365.25 - np.repeat(of, t2) / classes))
    s2 = 2000 + 800 * season[:, None] * np.linspace(-1, 1, 10) + rng.normal(size=(len(doy2), 10)) * 60
    ok = rng.random(len(doy2)) < valid
    ok[offsets_of(t2)[:-1]] = True
    orbit = np.concatenate([np.arange(t) >= t // 2 for t in t1] or [[]]).astype(np.uint8)
    return Records(
        tile=np.full(n, b"33TWN", "S5"),
        row_px=np.arange(n, dtype=np.int32),
        col_px=np.arange(n, dtype=np.int32) * 20,
        lon=15 + np.arange(n) * 0.01,
        lat=45 + np.arange(n) * 0.01,
        land=np.ones(n, np.float32),
        s2_offsets=offsets_of(t2),
        s1_offsets=offsets_of(t1),
        s2=np.where(ok[:, None], s2, 0).astype(np.uint16),
        s2_valid=ok,
        s2_doy=doy2.astype(np.int16),
        s1=rng.integers(1, 9000, (len(doy1), 2)).astype(np.int16),
        s1_valid=np.ones(len(doy1), bool),
        s1_orbit=orbit,
        s1_doy=doy1.astype(np.int16),
    )
