"""The golden scenes as an inventory, and what the reference made of them."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from small_scenes import TILE

from pipeline import inventory as inventory_verb
from transforms import inventory
from transforms.dpixels import LAYOUT, DPixels
from transforms.periods import period_of
from transforms.scenes import ASCENDING, DESCENDING

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
# As the command line takes them.
MPC_CATALOGUES = (("catalogue.json", "planetary-computer"),)
AWS_CATALOGUES = (("items", "earth-search"), ("catalogue.json", "opera"))


def part(pixels, rows, cols):
    """The d-pixels of a sub-window, all dates kept."""
    return dataclasses.replace(
        pixels,
        bands=pixels.bands[:, rows, cols],
        masks=pixels.masks[:, rows, cols],
        sar_ascending=pixels.sar_ascending[:, rows, cols],
        sar_descending=pixels.sar_descending[:, rows, cols],
    )


def thinned(pixels):
    """Without the dates of which nothing is there: which of these are kept depends on the window that was read.

    Where the mask is 0 the bands mean nothing, and depend on it too: they are set to 0.
    """
    seen = pixels.masks.any((1, 2))
    up, down = (getattr(pixels, f"sar_{o}").any((1, 2, 3)) for o in (ASCENDING, DESCENDING))
    return DPixels(
        (pixels.bands * pixels.masks[..., None])[seen],
        pixels.masks[seen],
        pixels.doys[seen],
        pixels.sar_ascending[up],
        pixels.sar_ascending_doy[up],
        pixels.sar_descending[down],
        pixels.sar_descending_doy[down],
    )


@dataclasses.dataclass(frozen=True)
class Golden:
    """The golden scenes as an inventory, and what the reference made of them."""

    scenes: list
    roots: dict
    rows: range
    cols: range
    wanted: DPixels
    deterministic: np.ndarray


@functools.cache
def golden_of(folder: str, catalogues: tuple[tuple[str, str], ...], out: Path) -> Golden:
    """The scenes of a golden folder by these (catalogue in it, provider); the inventory is written into `out`."""
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is not here")
    place = GOLDEN / folder
    roi = json.loads((place / "roi.json").read_text())
    listed = [(str(place / name), provider) for name, provider in catalogues]
    path = out / f"{folder}_{len(listed)}.parquet"
    inventory_verb.build(listed, period_of("_".join(roi["period"])), ["33TWL"], path)
    row, col = int(TILE.top_m - roi["transform"][5]) // 10, int(roi["transform"][2] - TILE.left_m) // 10
    return Golden(
        inventory.read_tile(path, "33TWL"),
        inventory.read_header(path).roots,
        range(row, row + roi["height"]),
        range(col, col + roi["width"]),
        DPixels(**{name: np.load(place / f"{name}.npy") for name in LAYOUT}),
        np.load(place / "deterministic.npy"),
    )
