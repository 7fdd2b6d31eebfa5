"""What to do when a trace lacks what an algorithm needs, in terms of the user's own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = [
    "FAILED_CALL",
    "NO_CALLS",
    "NO_CLIENT",
    "NO_CONTENT",
    "NO_CONTEXT",
    "NO_LOGPROBS",
    "NO_MATCH",
    "NO_REWARD",
    "NO_SPANS",
    "NO_TOKEN_IDS",
    "UNFINISHED",
    "instrument_advice",
    "token_ids_advice",
]

_GATEWAY: Final = 'through the gateway, Trainer(llm_proxy="gateway")'
_INSTRUMENTED_BY_OTEL: Final = ("openai", "anthropic", "langchain", "litellm", "openai-agents")

FAILED_CALL: Final = "look at what serves the model: its address, its key, its limits"
NO_SPANS: Final = (
    'use a tracer that records the agent, such as Trainer(tracer="otel"), and let the agent call the model while its '
    "rollout runs"
)
NO_CALLS: Final = (
    "record the calls with an instrumentation of the agent's client, such as "
    f'Trainer(tracer={{"type": "otel", "instrument": ["openai"]}}), or send them {_GATEWAY}'
)
NO_CLIENT: Final = f"send the calls {_GATEWAY}, which records what passes"
NO_CONTENT: Final = (
    f"let the instrumentation record contents, read streams to their end, or send the calls {_GATEWAY}"
)
NO_CONTEXT: Final = "start threads with contextvars.copy_context().run(function), or use asyncio.to_thread"
NO_REWARD: Final = (
    "return the reward from the agent as a number, 0.0 where it did not do its task, or call emit_reward"
)
NO_MATCH: Final = (
    "emit the reward after the call that earned it, or choose another credit: 'first_occurrence' looks at the whole "
    "trace, 'final' gives the last reward to every call"
)
NO_TOKEN_IDS: Final = (
    f"token ids come from the engine and are never made from text: send the agent's calls {_GATEWAY}, which asks for "
    "them, in front of an engine that gives them: vLLM, SGLang or llama.cpp"
)
NO_LOGPROBS: Final = f"ask the engine for them with logprobs=True, or send the calls {_GATEWAY}, which asks"
UNFINISHED: Final = "read streams to their end, and await background work before the agent returns"
_NOT_OF_THE_ENGINE: Final = (
    "the gateway got none from what serves the model: serve it with vLLM, SGLang or llama.cpp, and name that as the "
    'upstream\'s engine, such as engine="vllm"'
)


def token_ids_advice(*attributes: Mapping[str, Any]) -> str:
    """Say how to get the token ids that calls lack.

    Args:
        attributes: Those of each span that tells of a call without them.
    """
    seen = any(key.startswith("lightning.llm_proxy.") for span in attributes for key in span)
    return _NOT_OF_THE_ENGINE if seen else NO_TOKEN_IDS


def instrument_advice(names: Sequence[str]) -> str:
    """Say how to have the calls of clients recorded.

    Args:
        names: The clients, as their instrumentations are called.
    """
    known = [name for name in names if name in _INSTRUMENTED_BY_OTEL]
    if not known:
        return NO_CLIENT
    listed = ", ".join(f'"{name}"' for name in known)
    return (
        f'Trainer(tracer={{"type": "otel", "instrument": [{listed}]}}), after '
        f"pip install 'lightning-tracer-otel[{','.join(known)}]'"
    )
