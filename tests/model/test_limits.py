import numpy as np
import pytest

from model.limits import EXTREME, LIMITS, OTHERS, SAME_FILE, UNUSUAL, allowed_codes, day_error
from model.parity import Distance
from model.variant import PRECISIONS


@pytest.mark.parametrize("table", [LIMITS, SAME_FILE, UNUSUAL, EXTREME])
def test_every_precision_has_limits_and_every_limit_a_reason(table):
    assert list(table) == list(PRECISIONS)
    assert all(len(limit.why) > 20 for limit in table.values())
    assert all(what and value and len(why) > 20 for what, value, why in OTHERS)


def test_a_file_is_nearer_to_itself_than_to_its_reference():
    for precision in ("fp16", "int8"):
        near, far = SAME_FILE[precision], LIMITS[precision]
        assert near.error_per_rms < far.error_per_rms
        assert near.equal_codes_share > far.equal_codes_share
        assert near.cosine >= far.cosine


def test_few_codes_are_granted_three_standard_deviations_and_many_none_to_speak_of():
    limit = LIMITS["fp16"]
    few, many = limit.sampled(288), limit.sampled(10_000_000)
    assert few.allowed(288) == 14 + 11  # 5 % and three times the root of 288 * 0.95 * 0.05
    assert many.equal_codes_share == pytest.approx(limit.equal_codes_share, abs=3e-4)
    assert allowed_codes(10_000, "fp16") == 500
    assert allowed_codes(100, "fp32") == 3


def test_chance_alone_hardly_ever_breaks_a_sampled_limit():
    random = np.random.RandomState(0)
    differing = random.binomial(288, 0.05, 20_000)
    assert (differing > LIMITS["fp16"].sampled(288).allowed(288)).mean() < 5e-3


def test_a_distance_keeps_limits_only_where_it_keeps_each():
    good = Distance(1e-6, 1.0, 10_000, 1, 1, 1.0, (), ())
    assert good.keeps(LIMITS["fp32"])
    for fault in ({"max_abs_error": 2e-5}, {"differing_codes": 4}, {"max_code_step": 2}, {"cosine": 0.9999}):
        assert not Distance(**{**vars(good), **fault}).keeps(LIMITS["fp32"]), fault


def test_days_late_in_the_year_may_be_off_by_more_and_never_by_a_tenth_of_a_step():
    assert day_error(np.array([0.0]))[0] < 1e-6
    assert day_error(np.array([366.0]))[0] < 2e-4
