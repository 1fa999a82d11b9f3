"""Gate report: what a gate says of a model file, check by check."""

import dataclasses

from model.modelfile import ModelFile
from model.parity import Distance

# What a check is about, in the order in which a reader wants to know.
FILE, CONTRACT, NUMBERS, ROBUSTNESS, PLACEMENT, CHECKPOINT = (
    *("file", "contract", "numbers", "robustness"),
    *("placement", "checkpoint"),
)
GROUPS = {
    FILE: "the file: what it is made of, and that nobody has edited it",
    CONTRACT: "the contract: what it takes and gives, and under which profile",
    NUMBERS: "the numbers: what it computes, against encoders that were written apart from it",
    ROBUSTNESS: "robustness: what must not change its codes, and what must",
    PLACEMENT: "placement: what each of its nodes runs on",
    CHECKPOINT: "the checkpoint that it was made from",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about a model file.

    Attributes:
      name: what was checked; stable, for programs.
      ok: whether it holds.
      measured: what was found.
      limit: what it must be.
      why: what a failure would mean.
      group: one of `GROUPS`.
    """

    name: str
    ok: bool
    measured: str
    limit: str
    why: str
    group: str = NUMBERS


@dataclasses.dataclass(frozen=True)
class GateReport:
    """Every check of one file.

    Attributes:
      model: the file; its name, digests and records.
      checks: in the order they were made, group by group.
      distance: from the NumPy reference, None where the file could not be run.
    """

    model: ModelFile
    checks: tuple[Check, ...]
    distance: Distance | None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def faults_check(name: str, group: str, faults: list[str], right: str, limit: str, why: str) -> Check:
    """A check that holds where no fault was found; `right` says what was found then."""
    shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
    return Check(name, not faults, shown or right, limit, why, group)
