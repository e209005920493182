"""Intervals follow from a standard error, and from how many rows a result was found among."""

import math

import pytest

from bergson_core.search.projection_noise.intervals import ScoreError, student_quantile

ERROR = ScoreError(standard_error=0.1, freedom=math.inf, largest=1.0)


def test_a_score_that_was_not_chosen_has_nine_tenths_of_a_normal_distribution_around_it():
    assert ERROR.interval(0.5) == pytest.approx((0.5 - 0.16449, 0.5 + 0.16449), abs=1e-4)


def test_the_first_of_many_rows_may_be_high_by_chance():
    low, high = ERROR.interval_of_result(0.5, 1, 5000)
    assert low == pytest.approx(0.5 - 0.42649, abs=1e-4)  # one in 100,000 is further away
    assert high == pytest.approx(0.5 + 0.16449, abs=1e-4)
    assert ERROR.interval_of_result(-0.5, 1, 5000, is_lowest=True) == pytest.approx((-high, -low))


def test_a_lower_rank_is_less_due_to_chance_and_the_last_not_at_all():
    lows = [ERROR.interval_of_result(0.5, rank, 100)[0] for rank in (1, 2, 50, 100)]
    assert lows == sorted(lows)
    assert lows[-1] == ERROR.interval(0.5)[0]
    assert ERROR.interval_of_result(0.5, 7, 1) == ERROR.interval(0.5)


def test_a_group_has_the_interval_of_a_result_among_groups_and_reaches_as_far_as_its_chosen_members():
    assert ERROR.interval_of_group(0.5, 2, 40) == ERROR.interval_of_result(0.5, 2, 40)
    low, high = ERROR.interval_of_result(0.5, 2, 40)
    far, near = [(0.1, 0.4), (-0.3, 0.5)], [(0.2, 0.4), (0.2, 0.5)]
    assert ERROR.interval_of_group(0.5, 2, 40, far) == (pytest.approx(-0.2), high)
    assert ERROR.interval_of_group(0.5, 2, 40, near) == (low, high)
    lowest = [(-high, -low) for low, high in far]
    mirrored = ERROR.interval_of_group(-0.5, 2, 40, lowest, is_lowest=True)
    assert mirrored == (pytest.approx(-high), pytest.approx(0.2))


def test_cosines_stay_within_their_bounds_and_other_scores_have_none():
    assert ERROR.interval(0.95) == (pytest.approx(0.95 - 0.16449, abs=1e-4), 1)
    assert ERROR.interval(-0.95)[0] == -1
    assert ERROR.interval(1.0000001)[1] == 1.0000001  # by rounding
    assert ScoreError(0.1, math.inf, math.inf).interval(0.95)[1] > 1


def test_an_uncertain_standard_error_makes_an_interval_wider():
    widths = [high - low for low, high in (ScoreError(0.1, nu, math.inf).interval(0) for nu in (3, 30, 1e9))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected", "tolerance"),
    [
        (0.95, 0.5, 6.314, 0.05),
        (0.95, 1, 6.314, 0.05),
        (0.95, 2, 2.920, 0.003),
        (0.95, 3, 2.3534, 0.001),
        (0.95, 10, 1.8125, 0.001),
        (0.95, math.inf, 1.6449, 0.001),
        (0.999, 5, 5.893, 0.02),
        (0.999, 10, 4.144, 0.002),
        (0.999, 30, 3.385, 0.001),
        (0.9995, 10, 4.587, 0.002),
    ],
)
def test_quantiles_are_those_of_the_tables_of_students_distribution(
    probability, freedom, expected, tolerance
):
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=tolerance)
