"""Agents: what users write, as a class or as a decorated function."""

from lightning_core._lazy import lazy_module

from .agent import (
    LitAgent,
    call_deprecated_end,
    call_deprecated_start,
    call_rollout,
    is_v0_1_rollout_api,
)
from .functional import FunctionalLitAgent, llm_rollout, prompt_rollout, rollout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .command import CommandAgent

__getattr__, __dir__, _ = lazy_module(__name__, {"CommandAgent": "lightning_core.litagent.command"})

__all__ = [
    "CommandAgent",
    "FunctionalLitAgent",
    "LitAgent",
    "call_deprecated_end",
    "call_deprecated_start",
    "call_rollout",
    "is_v0_1_rollout_api",
    "llm_rollout",
    "prompt_rollout",
    "rollout",
]
