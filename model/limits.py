"""Limits: how far a model file may be from its reference, in each precision, and why."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Limits:
    """The thresholds of one precision. Absolute: a cosine of 1.000 hides a wrong recurrence or a flipped sign.

    Attributes:
      error_per_rms: largest |error| of an embedding value, in units of the reference's rms.
      equal_codes_share: least share of int8 codes that are equal.
      code_step: largest difference of a code; None where none is set.
      cosine: least cosine between a pixel's two vectors.
      why: where the numbers come from.
    """

    error_per_rms: float
    equal_codes_share: float
    code_step: int | None
    cosine: float
    why: str

    def allowed(self, codes: int) -> int:
        """How many of so many codes may differ."""
        return max(FEW_CODES, int(codes * (1 - self.equal_codes_share)))

    def sampled(self, codes: int) -> "Limits":
        """The same for a check of so few codes: three standard deviations of chance are granted on the share."""
        share = self.equal_codes_share
        chance = 3 * math.sqrt(share * (1 - share) / codes)
        return dataclasses.replace(self, equal_codes_share=max(0.0, share - chance))


LIMITS = {
    "fp32": Limits(
        error_per_rms=1e-5,
        equal_codes_share=0.9998,
        code_step=1,
        cosine=0.999999,
        why="float32 in another order of operations moves values by 1e-6 to 4e-6 of the rms, which carries about one "
        "code in 8,000 over a rounding border; a wrong recurrence moves them by 2e-2",
    ),
    "fp16": Limits(
        error_per_rms=1e-2,
        equal_codes_share=0.95,
        code_step=1,
        cosine=0.99999,
        why="float16 products leave 97 % of the codes (facts/model.md 2); bfloat16 would leave 78 %",
    ),
    "int8": Limits(
        error_per_rms=0.2,
        equal_codes_share=0.25,
        code_step=16,
        cosine=0.999,
        why="7-bit weights and 8-bit inputs leave 36 to 58 % of the codes, values 0.1 of the rms off and codes 7: a "
        "single row is the worst, with no others by which errors even out; twice that is another encoder",
    ),
}
# How far two runs of one file may be from each other: another setting, another order of observations.
SAME_FILE = {
    "fp32": dataclasses.replace(LIMITS["fp32"], why="fusions move values by 2e-6 of the rms; neighbours by nothing"),
    "fp16": Limits(
        error_per_rms=2e-3,
        equal_codes_share=0.99,
        code_step=1,
        cosine=0.99999,
        why="a CPU computes float16 products in float32 and rounds where its fusions end: 1e-4 of the rms measured",
    ),
    "int8": Limits(
        error_per_rms=3e-2,
        equal_codes_share=0.95,
        code_step=2,
        cosine=0.9999,
        why="a last bit may carry an input over the border of its 8-bit step: 4e-3 of the rms measured, 99.4 % equal",
    ),
}

# How far two runs of one file may be from each other where only the other pixels of the batch are changed.
NEIGHBOURS = {
    **SAME_FILE,
    "int8": Limits(
        error_per_rms=1e-3,
        equal_codes_share=0.999,
        code_step=1,
        cosine=0.99999,
        why="ranges are fixed and each pixel's rows are summed apart from all others: nothing measured; a single row "
        "may take another kernel",
    ),
}

# From the reference again, over inputs that are unlike those of int8's calibration: single rows, absent rows.
UNUSUAL = {
    **LIMITS,
    "int8": dataclasses.replace(
        LIMITS["int8"],
        error_per_rms=0.4,
        code_step=32,
        cosine=0.99,
        why="a single row has no others by which errors even out: cosine 0.9986 measured",
    ),
}
# Of numbers that hardly any pixel has, over the whole range of their type.
EXTREME = {
    **UNUSUAL,
    "fp32": dataclasses.replace(
        LIMITS["fp32"],
        error_per_rms=4e-5,
        why="rows thousands of deviations from the mean lose digits in float32: for an encoder that standardises "
        "by a small set's own statistics PyTorch is 1.0e-5 off, ONNX 1.2e-5; a clip there is worth 1.2",
    ),
}

FEW_CODES = 3
DAY_STEPS = 8.0
TOKEN_ERROR = 1e-6
SCALE_ERROR = {"fp32": 1e-5, "fp16": 1e-2, "int8": 1e-1}  # relative
LEAST_MOVEMENT = 1e-4  # of the rms
MOVEMENT_SHARE = 0.5
RANGE_ERROR = 0.25
HALF_REACH = 16_000.0
GOLDEN_ANGLE = (4.0, 1e-4)
FILE_BYTES = 2**31 - 1

# Thresholds beside the two tables above: what, where it stands, why.
OTHERS = (
    (
        "codes that may differ whatever the share",
        f"{FEW_CODES}",
        "chance alone puts so many into a few thousand codes, a fault hundreds",
    ),
    (
        "error of the day table, in float32 steps of 1 + the angle",
        f"{DAY_STEPS:g}",
        "the angle is float32 as the reference's is: 5 steps from exact arithmetic measured, 3e-5 at day 366",
    ),
    (
        "error of standardised rows, of those above 1 relative",
        f"{TOKEN_ERROR:.0e}",
        "float32 holds the statistics to 3e-8 of a deviation and rounds four times: 1e-7 measured",
    ),
    (
        "relative error of scales",
        ", ".join(f"{precision} {error:.0e}" for precision, error in SCALE_ERROR.items()),
        "a scale is a pixel's largest value over 127, so it is off by no more than that value's error",
    ),
    (
        "least movement by the order of rows before a GRU, of each sensor, and by one day more before any encoder",
        f"{LEAST_MOVEMENT:.0e} of the rms; of a GRU also {MOVEMENT_SHARE:.0%} of what it moves the reference",
        "another order moves an attention pool by rounding alone (1e-6 of the rms in fp32, 1e-3 in int8), and a GRU's "
        "by 4e-3 and more; a day that counts for nothing moves nothing",
    ),
    (
        "int8 input ranges, share by which they may differ from the ones measured again",
        f"{RANGE_ERROR:.0%}",
        "they are measured again with the int8 weights, on the same pixels: 1 to 3 % off; half a range clips",
    ),
    (
        "largest number in float16, computed in float32",
        f"{HALF_REACH:,.0f}",
        "float16 ends at 65,504; four times as much must be left for pixels that no test has seen",
    ),
    (
        "1 - cosine of an int8 file's golden outputs",
        f"{GOLDEN_ANGLE[0]:.0f} times that of its parity report, and {GOLDEN_ANGLE[1]:.0e}",
        "the report's is the worst of 121 pixels, the golden ones are 18; codes themselves cost some 5e-5",
    ),
    ("size of the file", f"{FILE_BYTES:,} bytes", "protobuf reads no larger message"),
)


def day_error(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far a float32 sine or cosine of these exact angles may be off."""
    return DAY_STEPS * 2.0**-24 * (1 + np.abs(angle))


def allowed_codes(codes: int, precision: str) -> int:
    """How many of so many codes may differ from the reference's."""
    return LIMITS[precision].allowed(codes)
