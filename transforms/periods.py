"""Periods: the twelve months that an embedding describes."""

import dataclasses
import datetime as dt
import re

from model.errors import BadInput


@dataclasses.dataclass(frozen=True, order=True)
class Period:
    """Twelve months, first and last day included."""

    start: dt.date
    end: dt.date

    @property
    def name(self) -> str:
        """As it stands in paths and ids: `2024`, or `2023-07-01_2024-06-30`."""
        if (self.start.month, self.start.day) == (1, 1):
            return f"{self.start.year:04d}"
        return f"{self.start}_{self.end}"

    @property
    def days(self) -> int:
        return (self.end - self.start).days + 1


def _a_year_after(start: dt.date) -> dt.date:
    """The last day of the twelve months that begin on `start`."""
    if (start.month, start.day) == (2, 29):  # which no year after has
        return dt.date(start.year + 1, 2, 28)
    return start.replace(year=start.year + 1) - dt.timedelta(days=1)


def period_of(text: str) -> Period:
    """Reads `2024`, `2023-07-01/2024-06-30`, or the same with `_` as in names.

    Raises:
      BadInput: anything else, or dates that are not twelve months apart.
    """
    days = f"{text}-01-01/{text}-12-31" if re.fullmatch(r"[0-9]{4}", text) else text
    match = re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[/_]([0-9]{4}-[0-9]{2}-[0-9]{2})", days)
    try:
        start, end = (dt.date.fromisoformat(g) for g in match.groups())  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise BadInput(f"period {text!r}: write a year (2024) or first/last day (2023-07-01/2024-06-30)") from None
    if end.year < 2015 or start.year > 2100:
        raise BadInput(f"period {text}: Sentinel-2 has data from 2015 on")
    if end != _a_year_after(start):
        raise BadInput(f"period {text}: twelve months from {start} end on {_a_year_after(start)}, not on {end}")
    return Period(start, end)
