"""Registers the adapter ``triplet``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lightning_core import Component, hookimpl

from .policy import RewardMatchPolicy

if TYPE_CHECKING:
    from lightning_core import TraceAdapter


class TripletConfig(BaseModel):
    """Settings of the adapter ``triplet``."""

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
    reward_match: RewardMatchPolicy = Field(
        default=RewardMatchPolicy.FIRST_OCCURRENCE,
        description="first_occurrence: a reward belongs to the last call before it. "
        "first_sibling: to the last call before it among its siblings and below them.",
    )

    @field_validator("agent_match", "llm_call_match")
    @classmethod
    def _regular_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


def _triplet(**settings: Any) -> TraceAdapter[Any]:
    from .adapter import TraceTripletAdapter

    return TraceTripletAdapter(**settings)


@hookimpl
def lightning_adapters() -> list[Component[TraceAdapter[Any]]]:
    """Provide the adapter."""
    return [
        Component(
            name="triplet",
            factory=_triplet,
            config=TripletConfig,
            summary="LLM calls as (prompt, response, reward) triplets, with the engine's token ids",
            api_version=1,
        )
    ]
