"""Presto's regressions: live fuel moisture and the severity of algal blooms, with monthly Sentinel-1 and Sentinel-2."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.probing.labels import REGRESSION, Labels
from model.profile import S2_BANDS
from pipeline.real.points import cells
from pipeline.real.probe_set import ProbeSet, radar_of, ragged

FOLDER = "nasaharvest-presto"
WEIGHTS = f"{FOLDER}/default_model.pt"
SETS = {"fuel-moisture": "fuel_moisture", "algae-blooms": "algae_blooms"}
COLUMNS = ("VV", "VH", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
           "temperature", "precipitation", "elevation", "slope", "NDVI")  # fmt: skip
ARRAYS = ("s1_s2_era5_srtm", "month", "target", "latlon", "is_test", "dynamic_world")
CELL = 0.25  # degrees; of lakes, which have no names in the files
# Middle of each month of a year without a 29th of February.
_MIDDLES = np.array([15, 46, 74, 105, 135, 166, 196, 227, 258, 288, 319, 349], np.int16)

NOTES = (
    "top-of-atmosphere reflectance (L1C), where the profile has L2A",
    "steps of about 30 days: the middle of the calendar month is their day of year",
    "records are of different years: the period says the order of months alone",
    "no masks: every optical step counts as valid, clouds included",
    "the file does not say the orbit of its radar: all of it is put into the ascending series",
    "radar of -25 dB and less is held as 0, as in the published layout; over water much of VH is",
    "imagery before the offset of 1000 DN: nothing is taken off",
)


def read(shared: Path, name: str) -> ProbeSet:
    """One of `SETS`, with its own spatial split, and all that Presto takes beside it.

    Raises:
      BadInput: a file is missing, or of another shape.
    """
    folder = shared / FOLDER / SETS[name]
    files = {
        n: folder / f"{n}.npy" for n in ("s1_s2_era5_srtm", "month", "target", "latlon", "is_test", "dynamic_world")
    }
    if (folder / "site.npy").is_file():
        files["site"] = folder / "site.npy"
    if missing := [str(p) for p in files.values() if not p.is_file()]:
        raise BadInput(f"no file {missing[0]}")
    data = {n: np.load(p, allow_pickle=False) for n, p in files.items()}
    x: NDArray[np.float64] = data["s1_s2_era5_srtm"]
    n = len(x)
    if x.ndim != 3 or x.shape[-1] != len(COLUMNS) or any(len(a) != n for a in data.values()):
        raise BadInput(
            f"{folder}: arrays of {', '.join(f'{k} {a.shape}' for k, a in data.items())} do not fit together"
        )
    optical = x[..., [COLUMNS.index(band) for band in S2_BANDS]]
    dn = np.clip(np.floor(optical + 0.5), 0, 65535).astype(np.uint16)
    doy = _MIDDLES[data["month"]]
    lat, lon = data["latlon"].T
    test = data["is_test"] == 1
    group = data["site"].astype(str) if "site" in data else cells(lon, lat, CELL)
    if "site" not in data:  # a cell may lie on the line that the split was drawn along
        group = np.char.add(group, np.where(test, " test", " train"))
    labels = Labels(name, REGRESSION, np.arange(n), data["target"].astype(np.float64), group, lon, lat, test)
    records = ragged(dn, np.ones(dn.shape[:2], bool), doy, radar_of(x[..., :2]), doy, lon, lat)
    whole = np.delete(x, COLUMNS.index("B09"), axis=-1).astype(np.float32)
    extra = {
        "x": whole,
        "month": data["month"],
        "cover": data["dynamic_world"].astype(np.int64),
        "lat": lat,
        "lon": lon,
    }
    return ProbeSet(labels, records, "2018", FOLDER, tuple(files.values()), NOTES, extra)
