"""Periods: the twelve months that an embedding describes."""

import calendar
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
    leap_day_gone = (start.month, start.day) == (2, 29) and not calendar.isleap(start.year + 1)
    day = 28 if leap_day_gone else start.day
    return dt.date(start.year + 1, start.month, day) - dt.timedelta(days=0 if leap_day_gone else 1)


def period_of(text: str) -> Period:
    """Reads `2024`, `2023-07-01/2024-06-30`, or the same with `_` as in names.

    Raises:
      BadInput: anything else, or dates that are not twelve months apart.
    """
    if re.fullmatch(r"\d{4}", text):
        year = int(text)
        if not 2015 <= year <= 2100:
            raise BadInput(f"period {text}: Sentinel-2 has data from 2015 on")
        return Period(dt.date(year, 1, 1), dt.date(year, 12, 31))
    match = re.fullmatch(r"(\d{4}-\d{2}-\d{2})[/_](\d{4}-\d{2}-\d{2})", text)
    try:
        start, end = (dt.date.fromisoformat(g) for g in match.groups())  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise BadInput(f"period {text!r}: write a year (2024) or first/last day (2023-07-01/2024-06-30)") from None
    if end != _a_year_after(start):
        raise BadInput(f"period {text}: twelve months from {start} end on {_a_year_after(start)}, not on {end}")
    return Period(start, end)
