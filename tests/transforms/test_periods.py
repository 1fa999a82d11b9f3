import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.periods import SLIP_DAYS, Period, period_of


def _months_later(start):
    """Twelve months by counting days forward until the calendar day comes round again, the slow way."""
    day = start + dt.timedelta(days=1)
    while (day.month, day.day) != (start.month, start.day) and not (
        (start.month, start.day) == (2, 29) and (day.month, day.day) == (3, 1) and day.year > start.year
    ):
        day += dt.timedelta(days=1)
    return day - dt.timedelta(days=1)


@settings(deadline=None)
@given(st.dates(dt.date(2015, 1, 1), dt.date(2099, 12, 31)))
def test_twelve_months_from_any_day_are_read_and_named_and_read_again(start):
    end = _months_later(start)
    period = period_of(f"{start}/{end}")
    assert period == Period(start, end)
    assert period_of(period.name) == period
    assert period.days in (365, 366)


@settings(deadline=None)
@given(st.dates(dt.date(2015, 1, 1), dt.date(2099, 12, 31)), st.integers(-SLIP_DAYS, 400).filter(bool))
def test_a_last_day_that_is_a_slip_or_too_late_is_refused_with_the_right_one(start, off_days):
    end = _months_later(start)
    with pytest.raises(BadInput, match=rf"twelve months from {start} end on {end}"):
        period_of(f"{start}/{end + dt.timedelta(days=off_days)}")


@settings(deadline=None)
@given(st.dates(dt.date(2015, 1, 1), dt.date(2099, 12, 31)), st.integers(0, 365 - SLIP_DAYS - 2))
def test_any_shorter_period_is_read_and_named_and_read_again_and_warns_of_its_length(start, more_days):
    end = start + dt.timedelta(days=more_days)
    period = period_of(f"{start}/{end}")
    assert period == Period(start, end) == period_of(period.name)
    assert period.name == f"{start}_{end}"
    assert period.days == more_days + 1
    assert f"{period.days} days, not twelve months" in period.warnings[0]
    assert any("crosses New Year" in w for w in period.warnings) == (end.year > start.year)


def test_a_calendar_year_warns_of_nothing_and_a_rolling_one_of_its_days():
    assert period_of("2024").warnings == ()
    (said,) = period_of("2023-07-01/2024-06-30").warnings
    assert "2023-07-01 to 2024-06-30 crosses New Year" in said


def test_fourteen_days_short_of_twelve_months_is_a_slip_and_fifteen_are_meant():
    with pytest.raises(BadInput, match=r"end on 2024-12-31, not on 2024-12-17; .* 15 days before"):
        period_of("2024-01-01/2024-12-17")
    assert period_of("2024-01-01/2024-12-16").days == 351


def test_the_first_half_of_a_year_is_not_called_by_the_year():
    assert period_of("2024-01-01/2024-06-30").name == "2024-01-01_2024-06-30"


def test_a_last_day_before_the_first_is_refused():
    with pytest.raises(BadInput, match="its last day comes before its first"):
        period_of("2024-06-30/2024-01-01")


@settings(deadline=None)
@given(st.integers(2015, 2100))
def test_a_year_is_the_twelve_months_from_its_first_day(year):
    period = period_of(str(year))
    assert period == period_of(f"{year}-01-01/{year}-12-31") == period_of(f"{year}-01-01_{year}-12-31")
    assert period.name == str(year)


def test_periods_sort_by_their_first_day():
    assert sorted(map(period_of, ["2024", "2023-07-01/2024-06-30", "2023"])) == [
        *map(period_of, ["2023", "2023-07-01/2024-06-30", "2024"])
    ]


def test_a_leap_day_begins_twelve_months_that_end_on_the_last_of_february():
    assert period_of("2024-02-29/2025-02-28").days == 366


@pytest.mark.parametrize(
    "text",
    ["", "24", "20245", "2024-01", "2024-1-1/2024-12-31", "2024\n"],
)
def test_what_is_no_period_is_refused_with_both_ways_to_write_one(text):
    with pytest.raises(BadInput, match=r"write a year \(2024\) or first/last day"):
        period_of(text)


@pytest.mark.parametrize("text", ["2023-02-29/2024-02-28", "2024-13-01/2025-12-31"])
def test_days_that_no_calendar_has_are_called_that(text):
    with pytest.raises(BadInput, match=f"period '{text}': a day that no calendar has"):
        period_of(text)


@pytest.mark.parametrize("text", ["2014", "0001", "9999", "1990-01-01/1990-12-31", "9999-01-01/9999-12-31"])
def test_years_without_sentinel_2_are_refused(text):
    with pytest.raises(BadInput, match=f"period {text}: Sentinel-2 has data from 2015 on"):
        period_of(text)


def test_a_period_that_ends_in_the_first_year_is_read():
    assert period_of("2014-07-01/2015-06-30").name == "2014-07-01_2015-06-30"
