"""``RewardMatchPolicy``: the names of the two usual rules by which rewards are matched with LLM calls."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

__all__ = ["RewardMatchPolicy", "as_given"]


class RewardMatchPolicy(StrEnum):
    """How rewards are matched with LLM calls. Order is that of sequence ids; a call takes one reward, the first.

    These are two of the credits that can be chosen.

    ``FIRST_OCCURRENCE``: a reward belongs to the last call before it, wherever in the trace. So a call gets the first
    reward that follows it, unless another call comes first.

    ``FIRST_SIBLING``: a reward belongs to the last call before it among its siblings and what lies below them. So
    agents that run at once, each under a span of its own with its own reward, do not take each other's rewards.
    """

    FIRST_SIBLING = "first_sibling"
    FIRST_OCCURRENCE = "first_occurrence"


def as_given(spec: Any) -> Any:
    """Return the :class:`RewardMatchPolicy` that a text names, and any other specification as it is."""
    return next((policy for policy in RewardMatchPolicy if policy.value == spec), spec)
