"""Which of the named resources an agent gets, and in which form."""

from __future__ import annotations

from typing import overload

from lightning_core.errors import ConfigurationError
from lightning_core.types import LLM, AttemptedRollout, NamedResources, ProxyLLM, Resource, RolloutV2

__all__ = ["attributed", "choose"]


def choose(resources: NamedResources, kind: type[Resource], *preferred: str) -> tuple[str | None, list[str]]:
    """Choose a resource of a kind: the first of the ``preferred`` names that fits, else the first that does.

    Returns:
        Its name, or ``None`` if there is none, and the names of all that fit.
    """
    fitting = [name for name, resource in resources.items() if isinstance(resource, kind)]
    for name in preferred:
        if name in fitting:
            return name, fitting
    return (fitting[0] if fitting else None), fitting


@overload
def attributed(resource: LLM, rollout: RolloutV2, label: str) -> LLM: ...
@overload
def attributed(resource: Resource, rollout: RolloutV2, label: str) -> Resource: ...
def attributed(resource: Resource, rollout: RolloutV2, label: str) -> Resource:
    """Return a plain ``LLM`` in place of a ``ProxyLLM``, with the rollout and the attempt in its endpoint.

    Args:
        resource: Any resource; others are returned as they are.
        rollout: Whose calls the proxy will serve.
        label: What the agent is called in messages.

    Raises:
        ConfigurationError: If the rollout comes without its attempt.
    """
    if not isinstance(resource, ProxyLLM):
        return resource
    if not isinstance(rollout, AttemptedRollout):
        raise ConfigurationError(
            f"{label} was given a ProxyLLM and rollout {rollout.rollout_id!r} without its attempt, "
            "so the proxy could not tell whose calls it serves; pass an AttemptedRollout"
        )
    return resource.with_attempted_rollout(rollout)
