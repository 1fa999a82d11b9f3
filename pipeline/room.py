"""Room: whether the disk that an output folder lies on has the space for what is going to be written there."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from model.errors import BadInput
from transforms.grid import PIXEL_M, TILE_PX
from transforms.regions import Region, clip_of

# Compressed share of raw codes and scales: int8, predictor 2, ZSTD (facts, sources-and-cogs 4.2, embedding-like data).
CODES_RATIO = 0.78
SCALE_RATIO = 0.78
DEGREE_M = 111_320.0  # along a meridian and the equator


def bytes_a_pixel(dims: int) -> float:
    """Of what is published and of fragments: codes and scale; all else is a few per cent of that."""
    return dims * CODES_RATIO + 4 * SCALE_RATIO


def pixels_of(tile: str, region: Region | None) -> float:
    """10 m pixels of a tile that a region wants, about: without drawing it, which takes a second a tile."""
    if region is None:
        return float(TILE_PX**2)
    clip = clip_of(region, tile)
    if clip is None:
        return float(TILE_PX**2)
    shape = clip.region.shape
    squeeze = math.cos(math.radians(shape.centroid.y)) if not shape.is_empty else 1.0
    return min(float(TILE_PX**2), shape.area * DEGREE_M**2 * squeeze / PIXEL_M**2)


def check_room(folder: Path, tiles: Sequence[str], region: Region | None, dims: int) -> list[str]:
    """The disk against a run's tiles: sentences for the operator, [] where all is well.

    A tile in work takes its size twice: its fragments, and the files that are made of them.

    Raises:
      BadInput: there is no room for the largest tile.
    """
    if not tiles:
        return []
    sizes = sorted((int(pixels_of(t, region) * bytes_a_pixel(dims)) for t in tiles), reverse=True)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if 2 * sizes[0] > free:
        raise BadInput(
            f"--out {folder}: {free / 1e9:,.2f} GB are free, and a tile in work takes {2 * sizes[0] / 1e9:,.2f} GB "
            "(its fragments and its files): make room, choose another disk or a bucket"
        )
    if sum(sizes) + sizes[0] > free:
        return [
            f"{folder} has {free / 1e9:,.2f} GB free, and this run may write {(sum(sizes) + sizes[0]) / 1e9:,.2f} GB: "
            "it stops when the disk is full, keeps the tiles that are published by then, and goes on after room is made"
        ]
    return []
