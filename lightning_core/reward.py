"""Rewards: a door to the reward functions of :mod:`lightning_core.emitter`."""

from lightning_core.emitter.reward import (
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    is_reward_span,
    parse_reward,
    reward,
)

__all__ = [
    "emit_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "is_reward_span",
    "parse_reward",
    "reward",
]
