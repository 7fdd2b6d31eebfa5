"""``CallSettings``: the settings of adapters that read the LLM calls of a trace, whatever they make of them."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["CallSettings", "Pattern"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern: TypeAlias = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class CallSettings(BaseModel):
    """Which LLM calls of a trace an adapter takes."""

    model_config = ConfigDict(extra="forbid")

    agent_match: Pattern | None = Field(
        default=None, description="Regular expression: only calls of agents whose name it matches are taken."
    )
    llm_call_match: Pattern | None = Field(
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
