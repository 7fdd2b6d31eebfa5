"""Confidence intervals: against published tables, and by what must hold of any sample."""

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_algorithm_search import intervals as module
from lightning_algorithm_search import mean_interval, paired_interval, t_quantile

# Quantiles of Student's t distribution as printed in Abramowitz & Stegun, table 26.10.
TABLE = {
    (0.95, 1): 6.314,
    (0.975, 1): 12.706,
    (0.995, 1): 63.657,
    (0.95, 2): 2.920,
    (0.975, 2): 4.303,
    (0.995, 3): 5.841,
    (0.975, 5): 2.571,
    (0.995, 5): 4.032,
    (0.95, 10): 1.812,
    (0.975, 10): 2.228,
    (0.995, 29): 2.756,
    (0.975, 30): 2.042,
    (0.975, 60): 2.000,
    (0.95, 120): 1.658,
    (0.975, 120): 1.980,
}


@pytest.mark.parametrize(("arguments", "value"), TABLE.items())
def test_quantiles_are_those_of_the_table(arguments: tuple[float, int], value: float):
    assert t_quantile(*arguments) == pytest.approx(value, abs=6e-4)


@given(st.floats(0.501, 0.9995), st.integers(1, 199))
def test_quantiles_are_symmetric_and_fall_with_the_degrees_of_freedom(probability: float, degrees: int):
    value = t_quantile(probability, degrees)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-value, rel=1e-9)
    assert value >= t_quantile(probability, degrees + 1) >= NormalDist().inv_cdf(probability)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_the_expansion_goes_on_where_the_exact_form_ends(probability: float, monkeypatch: pytest.MonkeyPatch):
    expanded = t_quantile(probability, 250)
    monkeypatch.setattr(module, "_MANY_DEGREES", 1000)
    assert expanded == pytest.approx(t_quantile(probability, 250), rel=1e-9)


def test_the_median_is_zero_and_other_arguments_are_refused():
    assert t_quantile(0.5, 3) == 0.0
    for arguments in ((0.0, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="t_quantile needs"):
            t_quantile(*arguments)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(0.5, 0.99))
def test_an_interval_holds_its_mean_and_grows_with_the_confidence(values: list[float], confidence: float):
    interval = mean_interval(values, confidence)
    wider = mean_interval(values, confidence + 0.005)
    assert wider.low <= interval.low <= interval.mean <= interval.high <= wider.high
    assert interval.count == len(values)


def test_an_interval_is_the_textbooks():
    # Mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776.
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.high - 3 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), abs=1e-4)


def test_one_value_says_nothing_of_its_spread_and_none_nothing_at_all():
    assert (mean_interval([2.0]).low, mean_interval([2.0]).high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = random.Random(1)
    trials, hits = 2000, 0
    for _ in range(trials):
        interval = mean_interval([rng.gauss(1.0, 3.0) for _ in range(5)], 0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert hits / trials == pytest.approx(0.9, abs=0.025)


def test_a_paired_interval_uses_the_common_tasks_only():
    first = {0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}
    second = {0: 0.0, 1: 4.0, 2: 8.0, 8: -100.0}
    interval = paired_interval(first, second)
    assert interval is not None
    assert (interval.mean, interval.low, interval.high, interval.count) == (1.0, 1.0, 1.0, 3)
    assert paired_interval({0: 1.0}, {1: 1.0}) is None


def test_pairing_takes_the_difficulty_of_the_tasks_out():
    first = {task: task + 0.5 + 0.1 * (task % 2) for task in range(20)}
    second = {task: float(task) for task in range(20)}
    paired = paired_interval(first, second)
    assert paired is not None
    assert paired.low > 0.5
    assert mean_interval(list(first.values())).low < mean_interval(list(second.values())).mean
