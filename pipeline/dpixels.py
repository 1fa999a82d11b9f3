"""The dpixels verb: a window's d-pixels in the published layout."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model.errors import BadInput
from model.families import profile_for
from pipeline.planning import READERS, check_imagery
from pipeline.reach import check_reach
from transforms import inventory
from transforms.dpixels import build, read_stack, save, unsearched
from transforms.grid import TILE_PX, tile_of
from transforms.read import ReadError


def window_of(text: str) -> tuple[int, int, int, int]:
    """ROW,COL,H,W in 10 m pixels of a tile.

    Raises:
      BadInput: not four whole numbers, or a window that leaves the tile.
    """
    try:
        row, col, height, width = (int(v) for v in text.split(","))
    except ValueError:
        raise BadInput(f"--window {text}: write ROW,COL,H,W in 10 m pixels, e.g. 2048,0,256,256") from None
    if min(row, col) < 0 or min(height, width) < 1 or row + height > TILE_PX or col + width > TILE_PX:
        raise BadInput(f"--window {text}: it leaves the tile, which has {TILE_PX} x {TILE_PX} pixels")
    return row, col, height, width


def dpixels(
    inv_path: str, family: str, tile_name: str, window: str, out: str, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Reads a window of a tile and writes `bands.npy` and its siblings: the dates that have a valid pixel in it.

    Args:
      family: one of `families.names()`, a variant too: the rules by which the pixels are made.

    Returns:
      What was written: counts, and `warnings` in the words that `warn` was given.

    Raises:
      BadInput: wrong window, family or tile; an inventory of sources that the family does not take, or without any
        optical one; rules that this release does not follow; an asset that cannot be read.
    """
    said: list[str] = []
    row, col, height, width = window_of(window)
    profile = profile_for(family, native_dims=128)  # the width of the output plays no part before the encoder
    tile = tile_of(tile_name)
    inv = inventory.read_header(inv_path)
    check_imagery(profile, f"profile {profile.name}", inv)
    missing = unsearched(profile, [s.name for s in inv.sources])
    if "optical" in missing:
        wants = " or ".join(missing["optical"])
        raise BadInput(
            f"{inv_path} has no optical source; profile {profile.name} wants {wants}: "
            "build the inventory again with a second --catalog"
        )
    said += inv.period.warnings
    if "radar" in missing:
        said.append(
            f"{inv_path} was never searched for radar: these d-pixels are optical alone, which profile {profile.name} "
            f"does not declare, and embed refuses the inventory (it wants {' or '.join(missing['radar'])})"
        )
    check_reach(inv, [tile_name])
    scenes = inventory.read_tile(inv_path, tile_name)
    rows, cols = range(row, row + height), range(col, col + width)
    with ThreadPoolExecutor(READERS) as pool:
        try:
            stack = read_stack(scenes, inv.roots, profile, tile, rows, cols, pool)
        except ReadError as e:
            drop = f"tessera-beam inventory amend {inv_path} --drop {e.scene}:{e.band} --reason '..' --out INV2"
            raise BadInput(f"tile {tile_name}: {e}. To leave it out: {drop}") from None
    pixels = build(stack, profile, rows)
    for orbit in ("ascending", "descending"):
        if not len(getattr(pixels, f"sar_{orbit}")):
            said.append(
                f"tile {tile_name}: no {orbit} pass in the window; sar_{orbit}.npy has shape (0, {height}, {width}, 2)"
            )
    if not len(pixels.doys):
        said.append(f"tile {tile_name}: no valid optical observation in the window")
    for text in said:
        warn(text)
    save(pixels, Path(out))
    return {
        "out": out,
        "tile": tile_name,
        "window": [row, col, height, width],
        "s2_dates": len(pixels.doys),
        "s1_ascending_dates": len(pixels.sar_ascending_doy),
        "s1_descending_dates": len(pixels.sar_descending_doy),
        "valid_observations": int(pixels.masks.sum()),
        "warnings": said,
    }
