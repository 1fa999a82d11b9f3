"""Limits: how far a model file may be from its reference, in each precision, and why."""

import dataclasses
import math


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
        error_per_rms=math.inf,
        equal_codes_share=0.0,
        code_step=None,
        cosine=0.999,
        why="7-bit weights and 8-bit inputs leave about half of the codes; what they leave is measured and printed",
    ),
}
FEW_CODES = 3  # that may always differ: chance alone puts so many into a few thousand codes, a fault hundreds
DAY_TABLE_ERROR = 1e-4  # float32 rounds the angle of day 366 by up to 3e-5, and two libraries may round it apart
SCALE_ERROR = 1e-5  # relative, of a float32 file's scales
FILE_BYTES = 2**31 - 1  # protobuf reads no larger message


def allowed_codes(codes: int, precision: str) -> int:
    """How many of so many codes may differ."""
    return max(FEW_CODES, int(codes * (1 - LIMITS[precision].equal_codes_share)))
