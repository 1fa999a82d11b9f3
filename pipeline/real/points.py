"""Points: 500 fields in South Sudan and Uganda, a year of monthly Sentinel-1 and Sentinel-2 and their crops."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.errors import BadInput
from model.probing.labels import CLASSIFICATION, Labels
from model.profile import S1_BANDS, S2_BANDS
from pipeline.real.cubes import MISSING, power_of
from pipeline.real.probe_set import ProbeSet, ragged
from pipeline.real.worldcereal import NOTES as CUBE_NOTES
from transforms.radar import scale_s1

FOLDER = "WorldCereal-worldcereal-classification"
FILE = "test_public_extractions.parquet"
MONTHS = 12
MID_MONTH = 15  # a composite is the month's; its day of year is the middle's
CELL = 0.25  # degrees, 28 km: what lies in one cell is never split; fields of one survey lie side by side
LEAST = 8  # points of a class that is told apart
_10_M = ("B02", "B03", "B04", "B08")

NOTES = (
    *(note for note in CUBE_NOTES if note.startswith(("the file does not say", "steps are", "radar is"))),
    f"an optical step is masked where one of its ten bands is {MISSING}; it has no scene classes to mask by",
    "imagery of 2016 and 2017, before the offset of 1000 DN: nothing is taken off",
    f"groups are cells of {CELL} degrees; classes of fewer than {LEAST} points have no label here",
)


def read(shared: Path) -> ProbeSet:
    """The points.

    Raises:
      BadInput: no such file, columns that it should have are not there, or points that begin in different months.
    """
    path = shared / FOLDER / FILE
    if not path.is_file():
        raise BadInput(f"no file {path}")
    table = pq.read_table(path)

    def column(name: str) -> NDArray[np.generic]:
        if name not in table.column_names:
            raise BadInput(f"{path} has no column {name}")
        found: NDArray[np.generic] = table[name].to_numpy(zero_copy_only=False)
        return found

    starts = np.unique(column("start_date").astype(str))
    if len(starts) != 1:
        raise BadInput(f"{path}: its points begin in {len(starts)} different months; one was expected")
    begin = dt.date.fromisoformat(str(starts[0]))
    months = [dt.date(begin.year + (begin.month - 1 + k) // 12, (begin.month - 1 + k) % 12 + 1, MID_MONTH)
              for k in range(MONTHS)]  # fmt: skip

    def steps(bands: tuple[str, ...], prefix: str) -> NDArray[np.uint16]:
        each = [[column(f"{prefix}-{b}-ts{k}-{'10m' if b in _10_M else '20m'}") for b in bands] for k in range(MONTHS)]
        return np.moveaxis(np.array(each, np.uint16), -1, 0)  # (N, T, bands)

    optical, radar = steps(S2_BANDS, "OPTICAL"), steps(S1_BANDS, "SAR")
    valid = (optical != MISSING).all(-1)
    optical[~valid] = 0
    doy = np.broadcast_to(np.array([m.timetuple().tm_yday for m in months], np.int16), valid.shape)
    crops = column("balancing_class").astype(str)
    names, counts = np.unique(crops, return_counts=True)
    kept = np.flatnonzero(np.isin(crops, names[counts >= LEAST]))
    lon, lat = (column(c).astype(np.float64) for c in ("lon", "lat"))
    labels = Labels(
        "worldcereal-points", CLASSIFICATION, kept, crops[kept], cells(lon, lat, CELL)[kept], lon[kept], lat[kept]
    )
    last = (months[-1].replace(day=28) + dt.timedelta(days=4)).replace(day=1) - dt.timedelta(days=1)
    records = ragged(optical, valid, doy, scale_s1(power_of(radar)), doy, lon, lat)
    return ProbeSet(labels, records, f"{begin}_{last}", FOLDER, (path,), NOTES)


def cells(lon: NDArray[np.float64], lat: NDArray[np.float64], side: float) -> NDArray[np.str_]:
    """(N,) names of the cells of `side` degrees that points lie in."""
    east, north = np.floor(lon / side).astype(int), np.floor(lat / side).astype(int)
    return np.array([f"{x:+d}{y:+d}" for x, y in zip(east.tolist(), north.tolist(), strict=True)])
