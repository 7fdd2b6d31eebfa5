"""Registers the LLM proxy ``gateway``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning_core import Component, hookimpl

from .settings import GatewayConfig

if TYPE_CHECKING:
    from .proxy import LLMProxy

__all__ = ["lightning_llm_proxies"]


def _make(**settings: Any) -> LLMProxy:
    from .proxy import LLMProxy

    return LLMProxy(**settings)


@hookimpl
def lightning_llm_proxies() -> Iterable[Component[Any]]:
    """Register the proxy."""
    return [
        Component(
            name="gateway",
            factory=_make,
            config=GatewayConfig,
            summary="Passes calls on to OpenAI-compatible endpoints and records them, token ids included.",
            api_version=1,
        )
    ]
