"""Against: what another source of the same scenes does to a model's inputs and to its embeddings."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.modelfile import ModelFile, open_model
from model.profile import S1_BANDS, Profile
from model.quantise import dequantise
from pipeline.dpixels import window_of
from pipeline.planning import READERS
from transforms import inventory
from transforms.dpixels import DPixels, build, read_stack, unbuildable
from transforms.draws import Place
from transforms.encode import MICRO_BATCH_PX, encode_window, provider_for, session_of
from transforms.grid import TILE_PX, tile_of
from transforms.inventory import Inventory
from transforms.read import ReadError
from transforms.scenes import ASCENDING, DESCENDING, S2, Scene

SIDE_PX = 128  # of the window that is compared where none is named: at the tile's centre
SERIES = (S2, f"S1 {ASCENDING}", f"S1 {DESCENDING}")
MISSED_SIGMA = 0.3  # a band's mean difference from which it is called a shift: a missed offset makes 0.35-0.9 (T8)


def against(path: str, other: str, model_path: str, tile: str = "", window: str = "") -> dict[str, Any]:
    """Compares two inventories of the same place and period: dates, d-pixels and embeddings of one window.

    Args:
      path, other: the inventories; `path` is the one that the model is meant for.
      model_path: model file, whose profile both are read by. tile: MGRS name, "" for the first that both have.
      window: ROW,COL,H,W in 10 m pixels, "" for the tile's centre.

    Raises:
      BadInput: what cannot be read, no common tile, other periods, a profile that cannot be built.
    """
    mine, theirs = inventory.read_header(path), inventory.read_header(other)
    if mine.period != theirs.period:
        raise BadInput(f"{path} is of {mine.period.name}, {other} of {theirs.period.name}: build them for one period")
    common = sorted(set(mine.tiles) & set(theirs.tiles))
    if tile and tile not in common:
        raise BadInput(f"tile {tile} is not in both: they share {', '.join(common[:5]) or 'none'}")
    if not common:
        raise BadInput(f"{path} and {other} share no tile")
    name = tile or common[0]
    edge = (TILE_PX - SIDE_PX) // 2
    where = window_of(window or f"{edge},{edge},{SIDE_PX},{SIDE_PX}")
    model = open_model(model_path)
    if rules := unbuildable(model.profile):
        raise BadInput(f"profile {model.profile.name}: {'; '.join(rules)}")
    scenes = [inventory.read_tile(p, name) for p in (path, other)]
    a, b = (_pixels(inv, s, model.profile, name, where) for inv, s in zip((mine, theirs), scenes, strict=True))
    found = {
        "inventories": [path, other],
        "sources": [[s.name for s in inv.sources] for inv in (mine, theirs)],
        "model": model.name,
        "profile": model.profile.name,
        "tile": name,
        "window": list(where),
        "dates": dates_of(*scenes),
        "optical": optical(a, b, model.profile),
        "radar": {o: radar(a, b, o, model.profile) for o in (ASCENDING, DESCENDING)},
        "embeddings": _embeddings(model, Place(name, mine.period.name, where[0], where[1]), (a, b)),
    }
    return {**found, "notes": _notes(found, model.profile)}


def _pixels(inv: Inventory, scenes: list[Scene], profile: Profile, tile: str, window: Sequence[int]) -> DPixels:
    row, col, height, width = window
    rows, cols = range(row, row + height), range(col, col + width)
    with ThreadPoolExecutor(READERS) as pool:
        try:
            stack = read_stack(scenes, inv.roots, profile, tile_of(tile), rows, cols, pool)
        except ReadError as e:
            drop = f"tessera-beam inventory amend {inv.path} --drop {e.scene}:{e.band} --reason '..' --out INV2"
            raise BadInput(f"{inv.path}, tile {tile}: {e}. To leave it out: {drop}") from None
    return build(stack, profile, rows)


def dates_of(mine: Sequence[Scene], theirs: Sequence[Scene]) -> dict[str, dict[str, Any]]:
    """Dates of kept scenes by series ("S2", "S1 ascending", "S1 descending"): how many in both, and which in one."""
    a, b = ({series: _dates(scenes, series) for series in SERIES} for scenes in (mine, theirs))
    return {
        series: {
            "both": len(a[series] & b[series]),
            "first_only": sorted(a[series] - b[series]),
            "second_only": sorted(b[series] - a[series]),
        }
        for series in SERIES
    }


def _dates(scenes: Sequence[Scene], series: str) -> set[str]:
    kept = (s for s in scenes if s.kept)
    return {s.datetime[:10] for s in kept if series == (S2 if s.sensor == S2 else f"S1 {s.orbit}")}


def _shared(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the days that both have stand in each; a day stands once in a period of twelve months."""
    _, i, j = np.intersect1d(a, b, return_indices=True)
    return i, j


def optical(a: DPixels, b: DPixels, profile: Profile) -> dict[str, Any]:
    """Masks and reflectances of the days that both have; differences are the second's less the first's."""
    i, j = _shared(a.doys, b.doys)
    valid = a.masks[i].astype(bool), b.masks[j].astype(bool)
    both = valid[0] & valid[1]
    bands = {}
    for k, band in enumerate(profile.s2_bands):
        x, y = (p.bands[at, ..., k][both].astype(np.int64) for p, at in ((a, i), (b, j)))
        bands[band] = _apart(x, y, profile.s2_std[k])
    return {
        "days": [len(a.doys), len(b.doys), len(i)],
        "valid_in_both": int(both.sum()),
        "valid_in_first_only": int((valid[0] & ~valid[1]).sum()),
        "valid_in_second_only": int((valid[1] & ~valid[0]).sum()),
        "bands": bands,
    }


def radar(a: DPixels, b: DPixels, orbit: str, profile: Profile) -> dict[str, Any]:
    """Scaled VV and VH of one orbit's days that both have, where neither is 0."""
    days = [getattr(p, f"sar_{orbit}_doy") for p in (a, b)]
    i, j = _shared(*days)
    bands = {}
    for k, band in enumerate(S1_BANDS):
        x, y = (getattr(p, f"sar_{orbit}")[at, ..., k].astype(np.int64) for p, at in ((a, i), (b, j)))
        seen = (x != 0) & (y != 0)
        bands[band] = _apart(x[seen], y[seen], getattr(profile, f"s1_{orbit}_std")[k])
    return {"days": [len(days[0]), len(days[1]), len(i)], "bands": bands}


def _apart(x: NDArray[np.int64], y: NDArray[np.int64], std: float) -> dict[str, Any]:
    if not x.size:
        return {"values": 0, "equal_share": None, "mean": None, "std": None, "mean_in_sigma": None}
    apart = y - x
    return {
        "values": int(x.size),
        "equal_share": round(float((apart == 0).mean()), 6),
        "mean": round(float(apart.mean()), 3),
        "std": round(float(apart.std()), 3),
        "mean_in_sigma": round(float(apart.mean()) / std, 4),
    }


def _embeddings(model: ModelFile, place: Place, pixels: Sequence[DPixels]) -> dict[str, Any]:
    provider = provider_for("auto", model)
    session = session_of(model, provider)
    runs = [encode_window(session, model.profile, place, p, None, MICRO_BATCH_PX[provider]) for p in pixels]
    return embeddings(*runs[0], *runs[1])


def embeddings(
    codes: NDArray[np.int8], scale: NDArray[np.float32], codes_b: NDArray[np.int8], scale_b: NDArray[np.float32]
) -> dict[str, Any]:
    """Codes (H, W, dims) and scales (H, W) of two runs, pixel by pixel where both have an embedding (scale not NaN)."""
    seen = np.isfinite(scale) & np.isfinite(scale_b)
    found: dict[str, Any] = {
        "pixels": int(seen.sum()),
        "first_only": int((np.isfinite(scale) & ~seen).sum()),
        "second_only": int((np.isfinite(scale_b) & ~seen).sum()),
    }
    if not seen.any():
        return {**found, "equal_codes_share": None, "cosine": None}
    x, y = (dequantise(c[seen], s[seen]).astype(np.float64) for c, s in ((codes, scale), (codes_b, scale_b)))
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = np.divide((x * y).sum(1), size, out=(x == y).all(1).astype(np.float64), where=size > 0)
    least, low, median = np.percentile(cosine, (0, 5, 50))
    return {
        **found,
        "equal_codes_share": round(float((codes[seen] == codes_b[seen]).mean()), 6),
        "cosine": {"least": round(least, 6), "p5": round(low, 6), "median": round(median, 6)},
    }


def _notes(found: dict[str, Any], profile: Profile) -> list[str]:
    """What a reader must not overlook."""
    notes = []
    for path, sources in zip(found["inventories"], found["sources"], strict=True):
        strange = sorted(set(sources) - {*profile.s2_sources, *profile.s1_sources})
        if strange:
            notes.append(
                f"{path} holds {', '.join(strange)}, which profile {profile.name} does not take: embed refuses it"
            )
    bands = found["optical"]["bands"]
    shifted = [b for b, v in bands.items() if v["mean_in_sigma"] is not None and abs(v["mean_in_sigma"]) > MISSED_SIGMA]
    if shifted:
        notes.append(
            f"{', '.join(shifted)} are shifted by more than {MISSED_SIGMA:g} deviations: in one of the two an "
            "offset of 1000 DN was missed or taken twice"
        )
    if not found["optical"]["valid_in_both"]:
        notes.append("no optical observation is valid in both: choose another --window")
    return notes


def words(r: dict[str, Any]) -> str:
    """The result as a person reads it."""
    row, col, height, width = r["window"]
    lines = [
        f"{r['inventories'][0]} ({', '.join(r['sources'][0])})",
        f"{r['inventories'][1]} ({', '.join(r['sources'][1])})",
        f"tile {r['tile']}, {height} x {width} px at row {row}, col {col}, by profile {r['profile']}",
    ]
    for series, d in r["dates"].items():
        lines.append(
            f"  {series:<13} {d['both']:4d} dates in both, "
            f"{len(d['first_only'])} in the first alone{_few(d['first_only'])}, "
            f"{len(d['second_only'])} in the second alone{_few(d['second_only'])}"
        )
    o = r["optical"]
    lines.append(
        f"  masks         {o['valid_in_both']:,} observations valid in both, {o['valid_in_first_only']:,} in the first "
        f"alone, {o['valid_in_second_only']:,} in the second alone"
    )
    for kind, bands in (("", o["bands"]), *((f" {orbit}", v["bands"]) for orbit, v in r["radar"].items())):
        lines += [f"  {band + kind:<13} {_band(v)}" for band, v in bands.items()]
    e = r["embeddings"]
    if e["cosine"]:
        c = e["cosine"]
        lines.append(
            f"  embeddings    {e['pixels']:,} px in both: {e['equal_codes_share']:.2%} of the codes equal, cosine "
            f"median {c['median']:.4f}, 5th percentile {c['p5']:.4f}, least {c['least']:.4f}"
        )
    else:
        lines.append("  embeddings    no pixel has one in both")
    return "\n".join([*lines, *(f"  note: {note}" for note in r["notes"])])


def _few(days: list[str]) -> str:
    return f" ({', '.join(days[:3])}{', ..' if len(days) > 3 else ''})" if days else ""


def _band(v: dict[str, Any]) -> str:
    if not v["values"]:
        return "no value in both"
    return (
        f"{v['equal_share']:.2%} of {v['values']:,} equal, the second is {v['mean']:+.1f} +- {v['std']:.1f} off "
        f"({v['mean_in_sigma']:+.3f} deviations)"
    )
