"""Registers the adapter ``messages``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lightning_core import Component, hookimpl

if TYPE_CHECKING:
    from lightning_core import TraceAdapter


class MessagesConfig(BaseModel):
    """Settings of the adapter ``messages``."""

    model_config = ConfigDict(extra="forbid")

    agent_match: str | None = Field(
        default=None, description="Regular expression: only calls of agents whose name it matches are taken."
    )
    llm_call_match: str | None = Field(
        default=None,
        description="Regular expression: the spans whose name it matches are the LLM calls. "
        "By default their attributes tell.",
    )
    exclude_llm_call_in_reward: bool = Field(
        default=True, description="Leave out the calls that a reward function made, such as those to a judge."
    )
    repair_hierarchy: bool = Field(
        default=True,
        description="Find a parent, by enclosure in time, for spans that have none in the trace and for LLM calls "
        "right below a root.",
    )
    per: Literal["call", "conversation"] = Field(
        default="call",
        description="call: an example for each LLM call. conversation: one for the last call of each conversation, "
        "which holds the earlier ones.",
    )
    keep_reasoning: bool = Field(
        default=False,
        description="Keep what the model thought, as reasoning_content, which OpenAI's fine-tuning does not take.",
    )

    @field_validator("agent_match", "llm_call_match")
    @classmethod
    def _regular_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


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
