"""Checks: what came out beside what had to come out, counted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FORMAT, VERSION = "tessera-beam/real", 1  # of the records that stand beside what was made


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      what: was compared. steps: dates, or 1.
      values: how many. different: of them, how many differ by more than allowed. largest: difference found.
      allowed: difference that counts as none.
    """

    what: str
    steps: int
    values: int
    different: int
    largest: float
    allowed: float = 0

    @property
    def ok(self) -> bool:
        """Whether something was compared and agrees."""
        return self.values > 0 and not self.different


def compare(
    what: str, got: NDArray[np.generic], wanted: NDArray[np.generic], steps: int | None = None, allowed: float = 0
) -> Check:
    """Counts the values that differ; NaN equals NaN. Arrays of different shapes differ everywhere.

    Args:
      steps: dates; the length of the first axis by default.
    """
    steps = len(wanted) if steps is None else steps
    if got.shape != wanted.shape:
        return Check(
            f"{what}: {got.shape} in place of {wanted.shape}", steps, wanted.size, wanted.size, np.inf, allowed
        )
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    gap = np.where(np.isnan(a) & np.isnan(b), 0, np.abs(a - b))
    gap[np.isnan(gap)] = np.inf  # NaN on one side only
    return Check(what, steps, gap.size, int((gap > allowed).sum()), float(gap.max(initial=0)), allowed)


def table(checks: Sequence[Check]) -> str:
    """The checks as lines of text."""
    width = max(len(c.what) for c in checks)
    lines = [f"{'compared':<{width}}  dates     values  different  largest"]
    for c in checks:
        verdict = "" if c.ok else "  DIFFERS" if c.values else "  NOTHING COMPARED"
        lines.append(f"{c.what:<{width}}  {c.steps:>5}  {c.values:>9,}  {c.different:>9,}  {c.largest:>7g}{verdict}")
    return "\n".join(lines)
