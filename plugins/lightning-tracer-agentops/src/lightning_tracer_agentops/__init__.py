"""The ``agentops`` tracer of lightning-core: LLM calls as AgentOps records them, kept on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tracer import AgentOpsTracer as AgentOpsTracer

__all__ = ["AgentOpsTracer"]


def __getattr__(name: str) -> Any:
    # Selecting a plugin imports its package, and must not import what only its use needs.
    if name == "AgentOpsTracer":
        from .tracer import AgentOpsTracer

        return AgentOpsTracer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
