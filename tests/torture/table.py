"""The table of a torture: what was tried, what survived, and what must be zero."""

import dataclasses
from collections.abc import Iterable

LOST, WRONG, UNCLEAR = "lost", "silently wrong", "unclear"


@dataclasses.dataclass
class Row:
    """One kind of torture.

    Attributes:
      kind: in words. tried, survived: how often. missed: of the tried ones those that ended before they were hit.
      repeated: blocks that were made again because they were in flight.
      lost: something that has to be there is not, or was made once more, or nobody needs it. wrong: other bytes than
        are right, and no word about them. unclear: a hang, or an end without a word about why.
      notes: every fault, in words.
    """

    kind: str
    tried: int = 0
    survived: int = 0
    missed: int = 0
    repeated: int = 0
    lost: int = 0
    wrong: int = 0
    unclear: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, faults: list[tuple[str, str]], what: str, repeated: int = 0, missed: bool = False) -> None:
        """Counts a try by its faults, each (LOST, WRONG or UNCLEAR, in words); none is a survival."""
        self.tried += 1
        self.survived += not faults
        self.missed += missed
        self.repeated += repeated
        kinds = {kind for kind, _ in faults}
        self.lost += LOST in kinds
        self.wrong += WRONG in kinds
        self.unclear += UNCLEAR in kinds
        self.notes += [f"{self.kind}, {what}: {kind}: {words}" for kind, words in faults]

    @property
    def ok(self) -> bool:
        return self.tried == self.survived


COLUMNS = ("kind", "tried", "not hit", "survived", "repeated blocks", "lost", "silently wrong", "unclear")


def as_text(rows: Iterable[Row], title: str) -> str:
    """The table as Markdown, and below it what was found."""
    rows = list(rows)
    lines = [f"# {title}", "", f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for r in rows:
        cells = (r.kind, r.tried, r.missed, r.survived, r.repeated, r.lost, r.wrong, r.unclear)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    sums = [
        sum(getattr(r, n) for r in rows)
        for n in ("tried", "missed", "survived", "repeated", "lost", "wrong", "unclear")
    ]
    lines += [f"| all | {' | '.join(map(str, sums))} |", ""]
    lines += [f"- {note}" for r in rows for note in r.notes]
    return "\n".join(lines) + "\n"


def ok(rows: Iterable[Row]) -> bool:
    """Whether nothing was lost, nothing silently wrong, nothing unclear."""
    return all(r.ok for r in rows)
