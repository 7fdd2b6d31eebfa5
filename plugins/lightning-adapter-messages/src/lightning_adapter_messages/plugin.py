"""Registers the adapter ``messages``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lightning_core import Component, hookimpl
from lightning_core.adapter.settings import CallSettings

if TYPE_CHECKING:
    from lightning_core import TraceAdapter


class MessagesConfig(CallSettings):
    """Settings of the adapter ``messages``."""

    per: Literal["call", "conversation"] = Field(
        default="call",
        description="call: an example for each LLM call. conversation: one for the last call of each conversation, "
        "which holds the earlier ones.",
    )
    keep_reasoning: bool = Field(
        default=False,
        description="Keep what the model thought, as reasoning_content, which OpenAI's fine-tuning does not take.",
    )


def _messages(**settings: Any) -> TraceAdapter[Any]:
    from .adapter import TraceMessagesAdapter

    return TraceMessagesAdapter(**settings)


@hookimpl
def lightning_adapters() -> list[Component[TraceAdapter[Any]]]:
    """Provide the adapter."""
    return [
        Component(
            name="messages",
            factory=_messages,
            config=MessagesConfig,
            summary="LLM calls as chat messages with tools, for a fine-tuning file",
            api_version=1,
        )
    ]
