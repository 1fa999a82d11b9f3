"""Layout: d-pixels as arrays, and the published layout that holds them on disk."""

import dataclasses
import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from transforms.scenes import ASCENDING, DESCENDING


@dataclasses.dataclass(frozen=True)
class DPixels:
    """All observations of a window of H x W pixels; what `bands.npy` and its siblings hold.

    Attributes:
      bands: (T, H, W, 10) uint16 DN after the offset rule, order of the profile, by date. Where `masks` is 0 the
        value is that of the day's first scene and means nothing.
      masks: (T, H, W) uint8, 1 = valid.
      doys: (T,) uint16 day of year, 1..366.
      sar_ascending, sar_descending: (T, H, W, 2) int16 scaled VV, VH by date; 0 = no data.
      sar_ascending_doy, sar_descending_doy: (T,) int16.
    """

    bands: NDArray[np.uint16]
    masks: NDArray[np.uint8]
    doys: NDArray[np.uint16]
    sar_ascending: NDArray[np.int16]
    sar_ascending_doy: NDArray[np.int16]
    sar_descending: NDArray[np.int16]
    sar_descending_doy: NDArray[np.int16]


LAYOUT = tuple(f.name for f in dataclasses.fields(DPixels))  # the file names of the published layout, less `.npy`


def save(pixels: DPixels, folder: Path) -> None:
    """Writes the published layout, one `.npy` an array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LAYOUT:
        np.save(folder / f"{name}.npy", getattr(pixels, name), allow_pickle=False)


def _read_array(path: Path) -> NDArray[np.generic]:
    # Not `np.load`, which takes an archive for an array too. A damaged header ends in any of these errors.
    try:
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError) as e:
        raise BadInput(f"{path}: not a whole .npy file ({e})") from None


def load(folder: Path, warn: Callable[[str], None]) -> DPixels:
    """Reads the published layout.

    A missing orbit is taken as (0, H, W, 2), with a word to `warn`. Everything else must be there: the reference takes
    missing masks and days for all-valid or day 0 (traps T16, T17).

    Raises:
      BadInput: files missing, unreadable, of wrong dtype or shape, days outside 1..366, masks beyond 0 and 1.
    """
    if not folder.is_dir():
        raise BadInput(f"--dpixels {folder}: no such folder")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in LAYOUT:
        path = folder / f"{name}.npy"
        if path.exists():
            arrays[name] = _read_array(path)
    for name in ("bands", "masks", "doys"):
        if name not in arrays:
            raise BadInput(f"{folder}: {name}.npy is missing; a d-pixel folder has {', '.join(LAYOUT)}")
    bands = arrays["bands"]
    if bands.ndim != 4 or bands.shape[3] != 10:
        raise BadInput(f"{folder}/bands.npy: shape {bands.shape}; (T, H, W, 10) was expected")
    T, H, W, _ = bands.shape
    for orbit in (ASCENDING, DESCENDING):
        name = f"sar_{orbit}"
        if (name in arrays) != (f"{name}_doy" in arrays):
            there, gone = (name, f"{name}_doy") if name in arrays else (f"{name}_doy", name)
            raise BadInput(f"{folder}: {there}.npy without {gone}.npy")
        if name not in arrays:
            warn(f"{folder}: no {name}.npy; taken as an orbit without any pass")
            arrays[name] = np.zeros((0, H, W, 2), np.int16)
            arrays[f"{name}_doy"] = np.zeros(0, np.int16)
    wanted = {"bands": (np.uint16, (T, H, W, 10)), "masks": (np.uint8, (T, H, W)), "doys": (np.uint16, (T,))}
    for orbit in (ASCENDING, DESCENDING):
        steps = next(iter(arrays[f"sar_{orbit}"].shape), 0)
        wanted[f"sar_{orbit}"] = (np.int16, (steps, H, W, 2))
        wanted[f"sar_{orbit}_doy"] = (np.int16, (steps,))
    for name, (dtype, shape) in wanted.items():
        a = arrays[name]
        if a.shape != shape:
            raise BadInput(f"{folder}/{name}.npy: shape {a.shape}, {shape} was expected")
        if name.endswith(("doys", "_doy")):
            if not np.issubdtype(a.dtype, np.integer) or (a.size and not (a.min() >= 1 and a.max() <= 366)):
                raise BadInput(f"{folder}/{name}.npy: days of year must be whole numbers in 1..366")
            arrays[name] = a.astype(dtype)
        elif name == "masks" and a.dtype == np.bool_:
            arrays[name] = a.view(np.uint8)
        elif a.dtype != dtype:
            raise BadInput(f"{folder}/{name}.npy: dtype {a.dtype}, {np.dtype(dtype)} was expected")
        elif name == "masks" and a.size and a.max() > 1:
            raise BadInput(f"{folder}/masks.npy: it holds {a.max()}; masks are 0 and 1 (1 = valid)")
    return DPixels(**arrays)  # type: ignore[arg-type]
