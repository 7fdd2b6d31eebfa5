"""The figures that the progress hook shows."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_hook_progress import Mean, Tally


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_mean_and_standard_error_are_those_of_the_definition(values: list[float]):
    mean = Mean()
    for value in values:
        mean.add(value)
    assert mean.value == pytest.approx(statistics.fmean(values), abs=1e-6, rel=1e-9)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert mean.standard_error == pytest.approx(expected, abs=1e-4, rel=1e-6)


def test_one_reward_has_no_standard_error():
    mean = Mean()
    assert mean.standard_error is None
    mean.add(0.5)
    assert mean.standard_error is None
    assert str(mean) == "0.50"
    mean.add(0.5)
    assert str(mean) == "0.50 ± 0.00"


def test_the_rate_counts_from_the_first_start():
    tally = Tally()
    assert tally.rate(5.0) is None
    tally.start(10.0)
    tally.start(12.0)
    assert tally.rate(11.0) is None
    tally.ended = 6
    assert tally.rate(10.0) is None
    assert tally.rate(13.0) == 2.0


def test_a_line_says_only_what_there_is_to_say():
    tally = Tally(started_at=0.0)
    assert tally.line(1.0, None) == "progress: 0 rollouts"
    tally.ended = 4
    assert tally.line(2.0, 8) == "progress: 4/8 rollouts, 2.0/s"
    tally.failed, tally.cancelled, tally.retried, tally.unrewarded = 1, 2, 3, 4
    tally.rewards["train"] = mean = Mean()
    mean.add(0.25)
    assert tally.line(2.0, 8) == (
        "progress: 4/8 rollouts, 2.0/s, reward 0.25, 1 failed, 2 cancelled, 3 retried, 4 without reward"
    )
    tally.rewards["val"] = Mean(count=1, value=1.0)
    assert tally.reward() == "reward train 0.25, val 1.00"
