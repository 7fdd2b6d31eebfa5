"""Rewards: a door to the reward functions of :mod:`lightning_core.emitter`.

Importing this module puts it in the place of the decorator ``lightning_core.reward``, so it can be called as that.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

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

F = TypeVar("F", bound=Callable[..., Any])


class _RewardModule(ModuleType):
    def __call__(self, fn: F) -> F:
        return reward(fn)


sys.modules[__name__].__class__ = _RewardModule
