"""Successive halving as pure functions: how many tasks a rung gets, who leads, and who goes on.

The scheme is that of K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016: every rung may cost the same, so that the candidates that are left share what those that
went out have freed. New is the rule who stays, see :func:`survivors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from .intervals import paired_interval

__all__ = ["Scores", "most_rungs", "new_tasks", "rank", "survivors"]

Scores = Mapping[str, Mapping[int, float]]
"""Rewards by candidate and task."""


def most_rungs(candidates: int) -> int:
    """Return how many rungs there can be: a rung keeps at most half, rounded up.

    Args:
        candidates: How many there are at the start.
    """
    return math.ceil(math.log2(candidates)) if candidates > 1 else 0


def new_tasks(rung_budget: int, candidates: int, remaining: int) -> int:
    """Return how many new tasks each candidate gets in a rung.

    Args:
        rung_budget: What a rung may cost, in rollouts.
        candidates: How many are left.
        remaining: How many tasks no candidate has had yet. A task is used once, since a repetition at a low
            temperature would count the same evidence twice.
    """
    return min(max(1, rung_budget // candidates), remaining)


def rank(scores: Scores) -> list[str]:
    """Return the candidates, highest mean reward first.

    Of equals, the one that comes first in ``scores`` comes first. Candidates without any reward come last.
    """
    return sorted(scores, key=lambda name: -fmean(scores[name].values()) if scores[name] else math.inf)


def survivors(scores: Scores, eta: int, confidence: float) -> list[str]:
    """Return the candidates that go on, highest mean reward first.

    The best ``ceil(n / eta)`` stay. Of the other candidates in the better half (rounded up), those stay that could
    be as good as the leader: the confidence interval of the paired difference, leader minus candidate, reaches
    zero. So a rung always ends with fewer candidates, and while there is room a small sample does not drop a good
    one by chance alone. The intervals are those of single comparisons; they guide the search and are no statement
    about all candidates at once.

    Args:
        scores: Rewards by candidate and task, of the candidates that are left.
        eta: One of how many stays for certain; at least 2.
        confidence: Of the intervals; between 0 and 1.
    """
    ranked = rank(scores)
    certain = math.ceil(len(ranked) / eta)
    room = math.ceil(len(ranked) / 2)
    leader = ranked[0]
    kept = ranked[:certain]
    for name in ranked[certain:room]:
        if _may_equal(scores[leader], scores[name], confidence):
            kept.append(name)
    return kept


def _may_equal(leader: Mapping[int, float], other: Mapping[int, float], confidence: float) -> bool:
    difference = paired_interval(leader, other, confidence)
    return difference is not None and difference.low <= 0
