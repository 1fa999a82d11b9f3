"""Quantise: int8 codes and a scale per pixel, value = code * scale."""

import numpy as np
import numpy.typing as npt

NO_DATA = -128  # in every band of a pixel without an embedding; no code is ever this, because they start at -127
CODE_MAX = 127  # largest code; the least is -CODE_MAX
SCALE_FLOOR = 1e-12  # least max|x| that a scale is made from (ucam-eo/tessera, v2 student)


def quantise(
    x: npt.NDArray[np.float32], floor: float = SCALE_FLOOR, floor_of: str = "largest"
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes each vector against its own largest value, rounding half to even; what the model file's graph does.

    Args:
      x: float32 (..., dims), finite.
      floor, floor_of: least max|x| ("largest", v2) or least scale ("scale", v1): the profile's `scale_floor`.

    Returns:
      codes int8 (..., dims) in -127..127, scale float32 (...).

    Raises:
      ValueError: NaN or infinity in `x`, which have no code.
    """
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError("NaN or infinity among the values to quantise: they have no code")
    if floor_of == "scale":
        scale = np.maximum(np.abs(x).max(-1) / np.float32(CODE_MAX), np.float32(floor))
    else:
        scale = np.maximum(np.abs(x).max(-1), np.float32(floor)) / np.float32(CODE_MAX)
    codes = np.clip(np.rint(x / scale[..., None]), -CODE_MAX, CODE_MAX)
    return codes.astype(np.int8), scale


def dequantise(codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The values that codes (..., dims) and scales (...) stand for: float32, NaN where the code is NO_DATA."""
    values = codes.astype(np.float32) * np.asarray(scale, np.float32)[..., None]
    values[codes == NO_DATA] = np.nan
    return values
