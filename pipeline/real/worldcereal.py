"""WorldCereal: a real year of monthly Sentinel-1 and Sentinel-2 composites in Belgium, embedded and written as COGs."""

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from model.modelfile import open_model
from model.profile import S1_BANDS, S2_BANDS
from pipeline.embed_folder import embed_dpixels
from pipeline.real.checks import FORMAT, VERSION, Check, compare
from pipeline.real.cubes import MISSING, RADAR_DB, WORLDCEREAL, Cube, power_of, read_cube
from transforms import dpixels
from transforms.cog import Layout, encode_window, write
from transforms.dpixels import DPixels, scale_s1
from transforms.encode import MICRO_BATCH_PX, observation_counts, provider_for, session_of
from transforms.fragments import layouts_of, reasons_of
from transforms.grid import tiles_at
from transforms.picture import thumbnail
from transforms.preview import colours_of, paint
from transforms.scenes import ASCENDING

NAME = "worldcereal"  # of the d-pixel folder, hence of the arrays

STAND_IN = {"B8A": "B08"}  # same plateau of the spectrum, 865 nm for 842 nm, and at 10 m in place of 20 m
_MID_MONTH = 15  # a composite is the month's; its day of year is the middle's
_OWN = [band for band in S2_BANDS if band not in STAND_IN]
NOTES = (
    f"B8A is not in the file: {STAND_IN['B8A']} stands in for it",
    f"the file does not say the orbit of its radar: all of it is put into the {ASCENDING} series",
    f"steps are monthly composites: day {_MID_MONTH} of the month is their day of year",
    f"an optical step is masked where one of its nine bands is {MISSING}; it has no scene classes to mask by",
    "radar is sigma0, and the model was trained on gamma0: the same pixels, some decibels apart on slopes",
)


def read(shared: Path) -> Cube:
    """The year's cube.

    Raises:
      BadInput: as `read_cube`.
    """
    s2, s1 = (
        read_cube(shared / WORLDCEREAL, names, prefix)
        for names, prefix in ((_OWN, "S2-L2A-"), (S1_BANDS, "S1-SIGMA0-"))
    )
    return dataclasses.replace(s2, bands={**s2.bands, **s1.bands})


def dpixels_of(cube: Cube) -> DPixels:
    """The cube in the published layout; DN 0 and mask 0 where there is nothing, radar in the ascending series."""
    missing = np.any([cube.bands[band] == MISSING for band in _OWN], axis=0)
    bands = np.stack([cube.bands[STAND_IN.get(band, band)] for band in S2_BANDS], axis=-1)
    bands[missing] = 0
    days = [day.replace(day=_MID_MONTH).timetuple().tm_yday for day in cube.days]
    H, W = cube.shape
    return DPixels(
        bands,
        (~missing).astype(np.uint8),
        np.array(days, np.uint16),
        np.stack([scale_s1(power_of(cube.bands[band])) for band in S1_BANDS], axis=-1),
        np.array(days, np.int16),
        np.zeros((0, H, W, 2), np.int16),
        np.zeros(0, np.int16),
    )


def _period(cube: Cube) -> str:
    last = cube.days[-1].replace(day=28) + dt.timedelta(days=4)
    return f"{cube.days[0].replace(day=1)}_{last - dt.timedelta(days=last.day)}"


def embed(cube: Cube, out: Path, model_path: str, warn: Callable[[str], None]) -> dict[str, Any]:
    """Writes the d-pixels, their embedding, and the embedding as COGs on the cube's own grid.

    Returns:
      `files`: the COGs, the picture and the record; `checks`; `facts`: what the data look like, in words.

    Raises:
      BadInput: a model that cannot be used.
    """
    model = open_model(model_path)
    pixels = dpixels_of(cube)
    folder = out / NAME / NAME
    dpixels.save(pixels, folder)
    made = embed_dpixels(str(folder), model_path, str(out / NAME), "auto", warn)
    codes, scale = np.load(made["codes"]), np.load(made["scales"])

    provider = provider_for("auto")
    colours = colours_of(session_of(model, provider), model.profile, MICRO_BATCH_PX[provider])
    counts = observation_counts(pixels)
    rasters: dict[str, NDArray[np.generic]] = {
        "embeddings": codes,
        "scales": scale[..., None],
        "observations": counts,
        "reasons": reasons_of(counts, np.ones(scale.shape, bool))[..., None],
        "preview": paint(codes, scale, colours),
    }
    record = {
        "format": FORMAT,
        "version": VERSION,
        "source": cube.origin,
        "epsg": cube.epsg,
        "transform": cube.transform,
        "period": _period(cube),
        "steps": [str(day) for day in cube.days],
        "stand_ins": STAND_IN,
        "notes": NOTES,
        "model": {"name": model.name, "sha256": model.sha256, "profile": model.profile.name},
    }
    tags = (
        ("TESSERA_MODEL", model.name),
        ("TESSERA_PERIOD", _period(cube)),
        ("TESSERA_STAND_INS", ", ".join(f"{k}: {v}" for k, v in STAND_IN.items())),
        ("TESSERA_NOTES", "; ".join(NOTES)),
    )
    checks = []
    for name, layout in _layouts(cube, model.dims, tags).items():
        path = out / NAME / f"{name}.tif"
        tiles = encode_window(rasters[name], layout)
        write(path, layout, {divmod(n, layout.tiles_across): data for n, data in enumerate(tiles)})
        checks.append(_checked(path, cube, rasters[name]))
    picture = out / NAME / "preview.png"
    picture.write_bytes(thumbnail(np.asarray(rasters["preview"], np.uint8)))
    note = out / NAME / "record.json"
    note.write_text(json.dumps(record, indent=1) + "\n")
    return {
        "files": [str(out / NAME / f"{name}.tif") for name in rasters] + [str(picture), str(note)],
        "checks": [*_against_file(cube, dpixels.load(folder, warn)), *checks],
        "facts": [*NOTES, *_facts(cube, pixels, made)],
    }


def _layouts(cube: Cube, dims: int, tags: tuple[tuple[str, str], ...]) -> dict[str, Layout]:
    """Those of a tile's assets, on the cube's grid."""
    H, W = cube.shape
    tile = tiles_at(*cube.ring[0])[0]
    return {
        name: dataclasses.replace(layout, height_px=H, width_px=W, epsg=cube.epsg, transform=cube.transform)
        for name, layout in layouts_of(tile, dims, tags).items()
    }


def _checked(path: Path, cube: Cube, raster: NDArray[np.generic]) -> Check:
    """The file as rasterio reads it against the array; another CRS or place counts as all values different."""
    with rasterio.open(path) as file:
        there = file.crs.to_epsg() == cube.epsg and tuple(file.bounds) == cube.bounds_m
        got = np.moveaxis(file.read(), 0, -1)
    what = f"{NAME} {path.name} by rasterio: CRS, bounds, values"
    return compare(what, got if there else np.zeros((0, *raster.shape)), raster, steps=1)


def _against_file(cube: Cube, pixels: DPixels) -> list[Check]:
    """The d-pixels against the cube: DN where valid, and decibels back from the int16 radar."""
    steps = len(cube.days)
    seen = pixels.masks == 1
    got = pixels.bands[seen][:, [S2_BANDS.index(band) for band in _OWN]]
    wanted = np.stack([cube.bands[band][seen] for band in _OWN], axis=-1)
    # The layout holds twice the decibels, 50 added, in steps of 1/200, cut off: under 0.0025 dB are lost.
    there = pixels.sar_ascending > 0
    decibels = (pixels.sar_ascending / 200 - 50) / 2
    exact = np.stack([20 * np.log10(cube.bands[band].astype(np.float64)) - RADAR_DB for band in S1_BANDS], axis=-1)
    return [
        compare(f"{NAME} d-pixels: nine bands where valid", got, wanted, steps),
        compare(f"{NAME} d-pixels: VV VH in dB, to 0.0025", decibels[there], exact[there], steps, allowed=0.00251),
    ]


def _facts(cube: Cube, pixels: DPixels, made: dict[str, Any]) -> list[str]:
    shares = pixels.masks.mean((1, 2))
    empty = [f"{day:%Y-%m}" for day, share in zip(cube.days, shares, strict=True) if not share]
    zeros = int((pixels.bands[pixels.masks == 1] == 0).sum())
    vv, vh = (np.percentile(pixels.sar_ascending[..., k], [1, 50, 99]).astype(int).tolist() for k in (0, 1))
    red = np.percentile(pixels.bands[pixels.masks == 1][:, S2_BANDS.index("B04")], [1, 50, 99]).astype(int).tolist()
    return [
        f"optical: {shares.mean():.1%} of {pixels.masks.size:,} observations valid; nothing at all in "
        f"{', '.join(empty) or 'no month'}; {zeros} valid DN are 0",
        f"percentiles 1, 50, 99 of the d-pixels: B04 {red}, VV {vv}, VH {vh}",
        f"{(pixels.sar_ascending[..., 1] == 0).mean():.2%} of VH lie under -25 dB, which the layout holds as 0",
        f"{made['embedded']:,} of {made['pixels']:,} pixels embedded by {made['model']} in {made['seconds']} s",
    ]
