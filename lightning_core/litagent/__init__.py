"""Agents: what users write, as a class or as a decorated function."""

from .agent import LitAgent, call_deprecated_end, call_deprecated_start, is_v0_1_rollout_api
from .functional import FunctionalLitAgent, llm_rollout, prompt_rollout, rollout

__all__ = [
    "FunctionalLitAgent",
    "LitAgent",
    "call_deprecated_end",
    "call_deprecated_start",
    "is_v0_1_rollout_api",
    "llm_rollout",
    "prompt_rollout",
    "rollout",
]
