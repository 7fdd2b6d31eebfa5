"""A training loop for AI agents in which every moving part is a plugin.

Names are imported when they are first used, so importing this package costs next to nothing.
"""

from ._lazy import lazy_module

# Type checkers take this name for true; importing it from typing would double the cost of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .adapter.base import TraceAdapter as TraceAdapter
    from .algorithm import BaseAlgorithm as BaseAlgorithm
    from .algorithm import FastAlgorithm as FastAlgorithm
    from .algorithm import algo as algo
    from .emitter import emit_exception as emit_exception
    from .emitter import emit_message as emit_message
    from .emitter import emit_object as emit_object
    from .emitter import emit_reward as emit_reward
    from .emitter import find_final_reward as find_final_reward

    # Not of the package, which has a module of that name too: type checkers would take that.
    from .emitter.reward import reward as reward
    from .engine.base import BaseEngine as BaseEngine
    from .execution.base import ExecutionStrategy as ExecutionStrategy
    from .litagent import CommandAgent as CommandAgent
    from .litagent import LitAgent as LitAgent
    from .litagent import llm_rollout as llm_rollout
    from .litagent import prompt_rollout as prompt_rollout
    from .litagent import rollout as rollout
    from .plugin import API_VERSION as API_VERSION
    from .plugin import Component as Component
    from .plugin import hookimpl as hookimpl
    from .plugin import resolve as resolve
    from .runner.agent import AgentRunnerV2 as AgentRunnerV2
    from .runner.base import BaseRunner as BaseRunner
    from .store.base import LightningStore as LightningStore
    from .store.memory import InMemoryLightningStore as InMemoryLightningStore
    from .tracer.base import BaseTracer as BaseTracer
    from .trainer import Trainer as Trainer
    from .trainer import TrainingResult as TrainingResult
    from .types import LLM as LLM
    from .types import Hook as Hook
    from .types import PromptTemplate as PromptTemplate
    from .types import ProxyLLM as ProxyLLM

__version__ = "1.0.0"

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "API_VERSION": "lightning_core.plugin",
        "LLM": "lightning_core.types",
        "AgentRunnerV2": "lightning_core.runner.agent",
        "BaseAlgorithm": "lightning_core.algorithm",
        "BaseEngine": "lightning_core.engine.base",
        "BaseRunner": "lightning_core.runner.base",
        "BaseTracer": "lightning_core.tracer.base",
        "CommandAgent": "lightning_core.litagent",
        "Component": "lightning_core.plugin",
        "ExecutionStrategy": "lightning_core.execution.base",
        "FastAlgorithm": "lightning_core.algorithm",
        "Hook": "lightning_core.types",
        "InMemoryLightningStore": "lightning_core.store.memory",
        "LightningStore": "lightning_core.store.base",
        "LitAgent": "lightning_core.litagent",
        "PromptTemplate": "lightning_core.types",
        "ProxyLLM": "lightning_core.types",
        "TraceAdapter": "lightning_core.adapter.base",
        "Trainer": "lightning_core.trainer",
        "TrainingResult": "lightning_core.trainer",
        "algo": "lightning_core.algorithm",
        "emit_exception": "lightning_core.emitter",
        "emit_message": "lightning_core.emitter",
        "emit_object": "lightning_core.emitter",
        "emit_reward": "lightning_core.emitter",
        "find_final_reward": "lightning_core.emitter",
        "hookimpl": "lightning_core.plugin",
        "llm_rollout": "lightning_core.litagent",
        "prompt_rollout": "lightning_core.litagent",
        "resolve": "lightning_core.plugin",
        "reward": "lightning_core.emitter",
        "rollout": "lightning_core.litagent",
    },
)
