"""Parcels: 800 fields in Korea with every Sentinel-2 acquisition of a year and their crops, as probe sets."""

import csv
import datetime as dt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.probing.labels import CLASSIFICATION, Labels
from model.profile import S2_BANDS
from model.records import Records
from pipeline.real.probe_set import ProbeSet, ragged

FOLDER = "massijjeong-Parcel-Level-SITS-Crop-Classification"
REGIONS = ("us", "yc", "nj", "nh")
# The last twelve months of a file: three of the four hold eighteen, and the fourth begins with these.
PERIODS = {region: (dt.date(2021, 7, 1), dt.date(2022, 6, 30)) for region in REGIONS}
PERIODS["nh"] = (dt.date(2022, 7, 1), dt.date(2023, 6, 30))
LEAST = 8  # parcels of a class that is told apart; those of smaller ones stay in the set, without a label

OFFSET = 1000  # DN, present throughout (the README's check): taken off where there is so much, as the profile does

CROPS = {
    "시설": "greenhouse", "마늘": "garlic", "사과": "apple", "복숭아": "peach", "포도": "grape", "배": "pear",
    "배추": "napa cabbage", "무": "radish", "양파": "onion", "참깨": "sesame", "고추": "chilli", "콩": "soy",
    "들깨": "perilla", "고구마": "sweet potato", "두릅": "aralia", "수단그라스": "sudangrass", "옥수수": "maize",
    "유자": "yuzu", "참다래": "kiwifruit", "묘목": "saplings",
}  # fmt: skip

NOTES = (
    "a value is the mean of a parcel, rounded to a whole DN, halves up: no single pixel",
    f"the offset of {OFFSET} DN that all of them carry was taken off where v >= {OFFSET}",
    "an empty cell is a masked date; so is one with a DN of 0 in any band, of which some early dates have a few",
    "no scene classes, no radar and no coordinates are in the files",
    f"classes of fewer than {LEAST} parcels have no label here",
    "the file holds up to eighteen months; the last twelve are taken",
    "their authors call the samples a dummy data set; they behave as real observations do",
)


def read(shared: Path, region: str) -> ProbeSet:
    """The parcels of a region.

    Raises:
      BadInput: no such file, or columns that it should have are not there.
    """
    path = shared / FOLDER / f"sample_{region}.csv"
    if not path.is_file():
        raise BadInput(f"no file {path}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    first, last = PERIODS[region]
    days = sorted({_day(name) for name in rows[0] if name.startswith("b02_")})
    days = [day for day in days if first <= day <= last]
    try:
        cells = [[[row[f"{band.lower()}_{day:%Y%m%d}"] for band in S2_BANDS] for day in days] for row in rows]
        crops = np.array([CROPS.get(row["CR_NM"], row["CR_NM"]) for row in rows])
    except KeyError as e:
        raise BadInput(f"{path} has no column {e}") from None
    values, valid = numbers_of(np.array([[[float(c) if c else np.nan for c in day] for day in p] for p in cells]))
    doy = np.array([day.timetuple().tm_yday for day in days], np.int16)
    names, counts = np.unique(crops, return_counts=True)
    kept = np.flatnonzero(np.isin(crops, names[counts >= LEAST]))
    nowhere = np.full(len(kept), np.nan)
    labels = Labels(
        f"parcels-{region}", CLASSIFICATION, kept, crops[kept], np.array([f"{region}-{i:03d}" for i in kept]),
        nowhere, nowhere.copy(),
    )  # fmt: skip
    return ProbeSet(labels, _records(values, valid, doy), f"{first}_{last}", FOLDER, (path,), NOTES)


def numbers_of(means: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """DN after the offset rule (N, T, 10), and which dates are valid (N, T), from parcel means with NaN for no cell."""
    whole = np.floor(np.nan_to_num(means, nan=0.0) + 0.5)
    valid: NDArray[np.bool_] = np.all(whole > 0, axis=-1)
    shifted = np.where(whole >= OFFSET, whole - OFFSET, whole)
    shifted[~valid] = 0
    return np.minimum(shifted, 65535).astype(np.uint16), valid


def _day(column: str) -> dt.date:
    return dt.datetime.strptime(column.partition("_")[2], "%Y%m%d").date()


def _records(values: NDArray[np.uint16], valid: NDArray[np.bool_], doy: NDArray[np.int16]) -> Records:
    n, steps = valid.shape
    return ragged(values, valid, np.broadcast_to(doy, (n, steps)))
