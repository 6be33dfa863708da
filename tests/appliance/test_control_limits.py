"""Limits of chance, held against published values."""

import pytest

from appliance.control_limits import Mean, Rate, means_differ, rates_differ


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [
        (Rate(81, 263), 0.2553, 0.3662),  # Newcombe 1998, Stat Med 17:857, table I, method 3
        (Rate(15, 148), 0.0624, 0.1605),
        (Rate(0, 20), 0.0, 0.1611),
        (Rate(1, 29), 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_as_published(rate: Rate, low: float, high: float):
    assert rate.interval(1.959964) == pytest.approx((low, high), abs=5e-5)


def test_nothing_says_nothing():
    assert Rate(0, 0).interval() == (0.0, 1.0)
    assert Rate(0, 0).value == 0.0


def test_few_cases_are_no_reason_to_warn():
    assert rates_differ(Rate(0, 19), Rate(100, 100)) == 0
    assert rates_differ(Rate(0, 20), Rate(100, 100)) == -1


def test_rates_differ_only_beyond_chance():
    assert rates_differ(Rate(45, 50), Rate(190, 200)) == 0
    assert rates_differ(Rate(30, 50), Rate(190, 200)) == -1
    assert rates_differ(Rate(190, 200), Rate(30, 50)) == 1


def test_means_differ_beyond_three_standard_errors():
    before = Mean(-800.0, 40.0, 400)

    assert means_differ(Mean(-790.0, 40.0, 25), before) == 0
    assert means_differ(Mean(-770.0, 40.0, 25), before) == 1
    assert means_differ(Mean(-830.0, 40.0, 25), before) == -1
    assert means_differ(Mean(0.0, 40.0, 19), before) == 0
    assert means_differ(None, before) == 0


def test_a_mean_of_values():
    assert Mean.of_values([]) is None
    assert Mean.of_values([2.0]) == Mean(2.0, 0.0, 1)
    assert Mean.of_values([1.0, 3.0]) == Mean(2.0, pytest.approx(2**0.5), 2)
