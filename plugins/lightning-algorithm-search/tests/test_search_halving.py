"""The rules of successive halving."""

import math
import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from lightning_algorithm_search.halving import most_rungs, new_tasks, rank, survivors

REWARDS = st.dictionaries(st.integers(0, 20), st.sampled_from([0.0, 0.5, 1.0]), max_size=20)
SCORES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), REWARDS, min_size=2, max_size=12)


@given(SCORES, st.integers(2, 5), st.floats(0.5, 0.99))
def test_a_rung_keeps_the_leader_and_drops_somebody(
    scores: dict[str, dict[int, float]], eta: int, confidence: float
):
    kept = survivors(scores, eta, confidence)
    ranked = rank(scores)
    assert kept[0] == ranked[0]
    assert kept == [name for name in ranked if name in kept]
    certain = math.ceil(len(scores) / eta)
    assert kept[:certain] == ranked[:certain]
    assert certain <= len(kept) <= math.ceil(len(scores) / 2) < len(scores)


@given(SCORES)
def test_ranking_goes_by_the_mean_and_is_stable(scores: dict[str, dict[int, float]]):
    means = {name: sum(each.values()) / len(each) if each else -1.0 for name, each in scores.items()}
    ranked = rank(scores)
    assert sorted(ranked) == sorted(scores)
    order = list(scores)
    for one, other in pairwise(ranked):
        assert means[one] > means[other] - 1e-12
        if means[one] == means[other]:
            assert order.index(one) < order.index(other)


@given(st.integers(2, 1000), st.integers(2, 5))
def test_there_are_never_more_rungs_than_announced(candidates: int, eta: int):
    # Nobody has a reward apart from the leader by a hair: as many stay as may.
    left, rungs = candidates, 0
    while left > 1:
        scores = {str(number): {0: 0.0, 1: float(number % 2)} for number in range(left)}
        left = len(survivors(scores, eta, 0.95))
        rungs += 1
    assert rungs <= most_rungs(candidates)


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 500))
def test_a_rung_stays_within_its_budget_and_the_tasks(budget: int, candidates: int, remaining: int):
    count = new_tasks(budget, candidates, remaining)
    assert 0 <= count <= remaining
    assert count * candidates <= max(budget, candidates)
    assert count > 0 or remaining == 0


def test_a_candidate_that_could_be_as_good_stays_while_there_is_room():
    close = {task: float(task % 2) for task in range(10)}
    closer = close | {0: 1.0}
    bad = dict.fromkeys(range(10), 0.0)
    scores = {"bad1": bad, "close": close, "bad2": bad, "closer": closer, "bad3": bad, "bad4": bad}
    assert survivors(scores, 6, 0.95) == ["closer", "close"]


def test_a_candidate_that_is_clearly_worse_goes_even_if_there_is_room():
    good = dict.fromkeys(range(10), 1.0)
    bad = {task: float(task == 0) for task in range(10)}
    scores = {"bad": bad, "good": good, "worse": dict.fromkeys(range(10), 0.0), "worst": {}}
    assert survivors(scores, 4, 0.95) == ["good"]


def test_a_candidate_without_any_reward_comes_last():
    assert rank({"none": {}, "negative": {0: -5.0}}) == ["negative", "none"]


def test_the_best_arm_of_a_bandit_is_found():
    rng = random.Random(0)
    found = 0
    for _ in range(50):
        truth = {f"arm {number}": number / 12 for number in range(9)}
        names, scores, tasks = list(truth), {name: dict[int, float]() for name in truth}, 0
        while len(names) > 1:
            count = new_tasks(9 * 16, len(names), 1000)
            for name in names:
                for task in range(tasks, tasks + count):
                    scores[name][task] = float(rng.random() < truth[name])
            tasks += count
            names = survivors({name: scores[name] for name in names}, 3, 0.95)
        found += names[0] in ("arm 8", "arm 7")
    assert found >= 45
