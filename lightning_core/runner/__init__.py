"""Runners: take rollouts out of the store and put them through the agent."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_legacy import AgentRunner as AgentRunner

    from .agent import AgentRunnerV2 as AgentRunnerV2
    from .base import BaseRunner as BaseRunner

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {"AgentRunnerV2": "lightning_core.runner.agent", "BaseRunner": "lightning_core.runner.base"},
    plugins={"AgentRunner": ("lightning_legacy", "lightning-legacy")},
)
