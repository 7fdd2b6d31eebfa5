"""Settings that had no effect on the rollout of a check: resources and parameters that the agent made no use of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lightning_core.litagent.functional import FunctionalLitAgent
from lightning_core.types import LLM, NamedResources

if TYPE_CHECKING:
    from lightning_core.litagent.agent import LitAgent
    from lightning_core.trainer.check.watch import SentCall

__all__ = ["find_idle"]


def find_idle(
    agent: LitAgent[Any], resources: NamedResources, sent: Sequence[SentCall]
) -> Iterator[tuple[str, str]]:
    """Find what an agent that did its task was given and made no use of.

    Args:
        agent: The agent.
        resources: What it was given.
        sent: The calls of language models that it sent.

    Yields:
        What had no effect, and what to do about it.
    """
    taken: Collection[str] = resources
    function: Any = agent
    if isinstance(function, FunctionalLitAgent):
        taken = function.taken(resources)
    for name, resource in resources.items():
        if name not in taken:
            yield (
                f"the agent takes no resource {name!r} ({type(resource).__name__}), so tuning it changes nothing",
                "give the agent a parameter for it: llm, prompt_template or resources",
            )
    for name, resource in resources.items():
        if isinstance(resource, LLM) and sent:
            yield from _unused(name, resource, sent)


def _unused(name: str, llm: LLM, sent: Sequence[SentCall]) -> Iterator[tuple[str, str]]:
    """What of a model's endpoint, name and sampling parameters reached no call."""
    endpoint = llm.get_base_url()
    host = urlsplit(endpoint).netloc
    calls = [call.body for call in sent if call.host == host]
    if not calls:
        others = ", ".join(sorted({call.host for call in sent}))
        yield (
            f"no call went to the endpoint of {name!r} ({endpoint}), but to {others}",
            f"make the client with base_url={name}.get_base_url() and api_key={name}.api_key",
        )
        return
    bodies = [body for body in calls if body]
    if not bodies:
        return
    models = {str(body.get("model")) for body in bodies}
    if llm.model not in models:
        yield (
            f"no call asked for the model of {name!r} ({llm.model}), but for {', '.join(sorted(models))}",
            f"pass model={name}.model",
        )
    ignored = [key for key, value in llm.sampling_parameters.items() if not _carried(key, value, bodies)]
    if ignored:
        yield (
            f"no call carried {', '.join(f'{key}={llm.sampling_parameters[key]!r}' for key in ignored)} of {name!r}",
            f"pass **{name}.sampling_parameters",
        )


def _carried(key: str, value: Any, bodies: Sequence[Mapping[str, Any]]) -> bool:
    return any(key in body and body[key] == value for body in bodies)
