"""Which agent a span belongs to, as frameworks record it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_core.types.llm.messages import as_dict, parsed

from .tree import TraceNode

__all__ = ["agent_name", "agents_of"]


_NAMES = ("gen_ai.agent.name", "agent.name", "recipient_agent_type")
_KINDS = (("agentops.span.kind", "agentops.entity.name"), ("traceloop.span.kind", "traceloop.entity.name"))


def agent_name(name: str, attributes: Mapping[str, Any]) -> str | None:
    """Return the name of the agent whose work a span is, or ``None`` if the span does not stand for an agent.

    Read are OpenTelemetry's ``gen_ai.agent.name``, ``agent.name``, the agent spans of OpenInference, AgentOps and
    Traceloop, and the node names of LangGraph.

    Args:
        name: The span's name, which is the agent's where nothing else names it.
        attributes: The span's attributes.
    """
    for key in _NAMES:
        value = attributes.get(key)
        if isinstance(value, str) and value:
            return value
    if attributes.get("openinference.span.kind") == "AGENT":
        return name
    for kind, named in _KINDS:
        if attributes.get(kind) == "agent":
            value = attributes.get(named)
            return value if isinstance(value, str) and value else name
    if attributes.get("gen_ai.operation.name") == "invoke_agent":
        return name.removeprefix("invoke_agent").strip() or name
    metadata = attributes.get("metadata")
    if isinstance(metadata, str) and "langgraph_node" in metadata:
        value = as_dict(parsed(metadata)).get("langgraph_node")
        return value if isinstance(value, str) else None
    return None


def agents_of(nodes: Iterable[TraceNode]) -> dict[TraceNode, str | None]:
    """Return the nearest agent that each of the nodes lies in, and that of their ancestors."""
    agents: dict[TraceNode, str | None] = {}
    for node in nodes:
        path: list[TraceNode] = []
        at: TraceNode | None = node
        while at is not None and at not in agents:
            path.append(at)
            at = at.parent
        agent = agents[at] if at is not None else None
        for step in reversed(path):
            agent = agents[step] = agent_name(step.name, step.attributes) or agent
    return agents
