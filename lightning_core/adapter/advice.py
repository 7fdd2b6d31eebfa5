"""What to do when a trace lacks what an algorithm needs, in terms of the user's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "FAILED_CALL",
    "NO_CALLS",
    "NO_CONTENT",
    "NO_MATCH",
    "NO_REWARD",
    "NO_SPANS",
    "NO_TOKEN_IDS",
    "token_ids_advice",
]

FAILED_CALL: Final = "look at what serves the model: its address, its key, its limits"
NO_SPANS: Final = (
    "use a tracer that records the agent, such as Trainer(tracer='otel'), and let the agent call the model while its "
    "rollout runs"
)
NO_CALLS: Final = (
    "record the calls with an instrumentation of the agent's client, such as "
    "tracer={'type': 'otel', 'instrument': ['openai']}, or send them through the gateway, Trainer(llm_proxy='gateway')"
)
NO_CONTENT: Final = (
    "let the instrumentation record contents, read streams to their end, or send the calls through the gateway, "
    "Trainer(llm_proxy='gateway')"
)
NO_REWARD: Final = "return a number from the agent, or call emit_reward"
NO_MATCH: Final = (
    "emit the reward after the call that earned it, or choose another credit: 'first_occurrence' looks at the whole "
    "trace, 'final' gives the last reward to every call"
)
NO_TOKEN_IDS: Final = (
    "token ids come from the engine: send the agent's calls through the gateway, Trainer(llm_proxy='gateway'), which "
    "asks for them, in front of an engine that gives them: vLLM, SGLang or llama.cpp"
)
_NOT_OF_THE_ENGINE: Final = (
    "the gateway got none from what serves the model: serve it with vLLM, SGLang or llama.cpp, and name that as the "
    "upstream's engine, such as engine='vllm'"
)


def token_ids_advice(attributes: Mapping[str, Any]) -> str:
    """Say how to get the token ids that the span of a call lacks.

    Args:
        attributes: The span's attributes.
    """
    seen = any(key.startswith("lightning.llm_proxy.") for key in attributes)
    return _NOT_OF_THE_ENGINE if seen else NO_TOKEN_IDS
