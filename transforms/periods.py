"""Periods: the days that an embedding describes, twelve months unless a shorter time is asked for."""

import dataclasses
import datetime as dt
import re

from model.errors import BadInput

# A last day that is this near to the end of twelve months is a slip: nobody asks for 363 days of a year.
SLIP_DAYS = 14


@dataclasses.dataclass(frozen=True, order=True)
class Period:
    """From a first to a last day, both included; twelve months, or fewer."""

    start: dt.date
    end: dt.date

    @property
    def name(self) -> str:
        """As it stands in paths and ids: `2024`, or `2023-07-01_2024-06-30`."""
        if (self.start.month, self.start.day, self.end) == (1, 1, dt.date(self.start.year, 12, 31)):
            return f"{self.start.year:04d}"
        return f"{self.start}_{self.end}"

    @property
    def days(self) -> int:
        return (self.end - self.start).days + 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unlike the calendar years that the published weights were made and shown on, in words."""
        said = []
        if self.end != _a_year_after(self.start):
            said.append(
                f"period {self.name.replace('_', ' to ')} has {self.days} days, not twelve months: the published "
                "weights saw whole years, and embeddings of other lengths are not comparable with theirs"
            )
        if self.end.year > self.start.year:
            said.append(
                f"period {self.name.replace('_', ' to ')} crosses New Year: days of year fall back to 1 on the way, "
                "which weights with a recurrence (v1.x) see and calendar years never show"
            )
        return tuple(said)


def _a_year_after(start: dt.date) -> dt.date:
    """The last day of the twelve months that begin on `start`."""
    if (start.month, start.day) == (2, 29):  # which no year after has
        return dt.date(start.year + 1, 2, 28)
    return start.replace(year=start.year + 1) - dt.timedelta(days=1)


def period_of(text: str) -> Period:
    """Reads `2024`, `2023-07-01/2024-06-30`, or the same with `_` as in names.

    Any first and last day are taken that lie at most twelve months apart; see `Period.warnings`.

    Raises:
      BadInput: anything else; days that are nearly twelve months apart, or more: a day of year would come twice.
    """
    days = f"{text}-01-01/{text}-12-31" if re.fullmatch(r"[0-9]{4}", text) else text
    match = re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[/_]([0-9]{4}-[0-9]{2}-[0-9]{2})", days)
    if match is None:
        raise BadInput(f"period {text!r}: write a year (2024) or first/last day (2023-07-01/2024-06-30)")
    try:
        start, end = (dt.date.fromisoformat(g) for g in match.groups())
    except ValueError as e:
        raise BadInput(f"period {text!r}: a day that no calendar has ({e})") from None
    if end.year < 2015 or start.year > 2100:
        raise BadInput(f"period {text}: Sentinel-2 has data from 2015 on")
    if end < start:
        raise BadInput(f"period {text}: its last day comes before its first")
    last = _a_year_after(start)
    if end > last or 0 < (last - end).days <= SLIP_DAYS:
        raise BadInput(
            f"period {text}: twelve months from {start} end on {last}, not on {end}; a shorter period may end "
            f"{SLIP_DAYS + 1} days before that at the latest"
        )
    return Period(start, end)
