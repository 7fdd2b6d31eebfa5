"""Confidence intervals of means and of paired differences, by Student's t distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

__all__ = ["Interval", "mean_interval", "paired_interval", "t_quantile"]

# Above this, an asymptotic expansion is exact to ten digits and does not need as many terms.
_MANY_DEGREES = 200


@dataclass(frozen=True)
class Interval:
    """A mean of ``count`` values, and its confidence interval from ``low`` to ``high``.

    ``low`` and ``high`` are infinite for fewer than two values, which say nothing of their spread.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of ``values`` and its two-sided interval ``m ± t · s / sqrt(n)``.

    ``s`` is the sample standard deviation and ``t`` the quantile of Student's distribution with n - 1 degrees of
    freedom at ``(1 + confidence) / 2`` (Student, "The probable error of a mean", Biometrika 6 (1908) 1-25). It is
    exact for normal values and, by the central limit theorem, good for others once there are some tens of them.
    Where all values are equal it has no width, however few they are: what did not vary yet may still.

    Args:
        values: At least one.
        confidence: Between 0 and 1.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = t_quantile((1 + confidence) / 2, count - 1) * stdev(values, mean) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_interval(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95
) -> Interval | None:
    """Return the mean of ``first - second`` over the tasks that both have, and its interval.

    Differences on the same task leave out what makes tasks easy or hard, so the interval is narrower than that of
    two means; otherwise it is :func:`mean_interval`.

    Args:
        first: Rewards by task.
        second: Rewards by task.
        confidence: Between 0 and 1.

    Returns:
        The interval, or ``None`` if no task is in both.
    """
    common = sorted(first.keys() & second.keys())
    return mean_interval([first[task] - second[task] for task in common], confidence) if common else None


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    Up to 200 degrees of freedom the exact distribution (Abramowitz & Stegun, "Handbook of mathematical functions",
    1964, 26.7.3 and 26.7.4) is inverted by bisection; above, their expansion 26.7.5 around the normal quantile
    is used.

    Args:
        probability: Between 0 and 1, both excluded.
        degrees: Degrees of freedom, at least 1.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(
            f"t_quantile needs 0 < probability < 1 and degrees >= 1, not {probability}, {degrees}"
        )
    if probability == 0.5:
        return 0.0
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    if degrees > _MANY_DEGREES:
        return _expanded_quantile(probability, degrees)
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    # Each step halves the interval; 60 of them reach the precision of a float.
    for _ in range(60):
        middle = (low + high) / 2
        if _two_sided(middle, degrees) < inside:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _two_sided(angle: float, degrees: int) -> float:
    """The probability that ``|T|`` is below ``sqrt(degrees) * tan(angle)``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    if degrees == 1:
        return 2 * angle / math.pi
    term = total = cosine if odd else 1.0
    for step in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _expanded_quantile(probability: float, degrees: int) -> float:
    x = NormalDist().inv_cdf(probability)
    x2 = x * x
    terms = (
        x * (x2 + 1) / 4,
        x * ((5 * x2 + 16) * x2 + 3) / 96,
        x * (((3 * x2 + 19) * x2 + 17) * x2 - 15) / 384,
        x * ((((79 * x2 + 776) * x2 + 1482) * x2 - 1920) * x2 - 945) / 92160,
    )
    return x + sum(term / degrees**power for power, term in enumerate(terms, start=1))
