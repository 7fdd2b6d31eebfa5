"""Puts the LLM proxy of a run in front of the models that it starts from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lightning_core.store.base import LightningStore
from lightning_core.types import LLM, NamedResources, ProxyLLM

__all__ = ["behind_proxy"]


@contextmanager
def behind_proxy(
    proxy: Any, resources: NamedResources | None, store: LightningStore
) -> Generator[NamedResources | None]:
    """Have the calls of a run's agents go through its LLM proxy while the block runs.

    Each plain ``LLM`` that the run starts from is served by the proxy, and agents find it there under the same name. A
    ``ProxyLLM`` stays as it is. A run that starts from no model gets the first one that the proxy knows by name as
    ``main_llm``. A proxy that has no method ``in_front_of``, or knows no model, is left to the algorithm.

    Args:
        proxy: The proxy, or ``None``.
        resources: What the run starts from; ``None`` for what its store has.
        store: Where the proxy's spans go.

    Yields:
        What the run starts from instead.
    """
    given = resources or {}
    models = [name for name, resource in given.items() if isinstance(resource, LLM)]
    llms = {name: given[name] for name in models if not isinstance(given[name], ProxyLLM)}
    if not hasattr(proxy, "in_front_of") or (models and not llms):
        yield resources
        return
    with proxy.in_front_of(llms, store) as found:
        yield {**given, **found} if found else resources
