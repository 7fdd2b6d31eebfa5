"""Registers the adapters ``triplet`` and ``llm-proxy-triplet``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lightning_core import Component, hookimpl
from lightning_core.errors import LightningError

from .policy import RewardMatchPolicy, as_given

if TYPE_CHECKING:
    from lightning_core import TraceAdapter


class _Matching(BaseModel):
    """The settings that both adapters have."""

    model_config = ConfigDict(extra="forbid")

    reward_match: Any = Field(
        default=RewardMatchPolicy.FIRST_OCCURRENCE,
        description="The credit: which call a reward belongs to. first_occurrence: to the last call before it. "
        "first_sibling: to the last call before it among its siblings and below them. final: to every call, if it is "
        "the last one. Or any other, with its settings, or a function.",
    )

    @field_validator("reward_match")
    @classmethod
    def _known_credit(cls, spec: Any) -> Any:
        from .rewards import credit_of

        try:
            credit_of(spec)
        except LightningError as error:
            raise ValueError(str(error)) from None
        return as_given(spec)

    @field_validator("agent_match", "llm_call_match", check_fields=False)
    @classmethod
    def _regular_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


class TripletConfig(_Matching):
    """Settings of the adapter ``triplet``."""

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


class LlmProxyTripletConfig(_Matching):
    """Settings of the adapter ``llm-proxy-triplet``."""

    llm_call_match: str | None = Field(
        default=None,
        description="Regular expression: of the gateway's calls only those whose span has a name that it matches "
        "are taken.",
    )
    require_token_ids: bool = Field(
        default=True,
        description="Leave out the calls of which the engine gave no token ids, with a warning. "
        "Otherwise their triplets hold none.",
    )


def _triplet(**settings: Any) -> TraceAdapter[Any]:
    from .adapter import TraceTripletAdapter

    return TraceTripletAdapter(**settings)


def _llm_proxy_triplet(**settings: Any) -> TraceAdapter[Any]:
    from .proxy import LlmProxyTripletAdapter

    return LlmProxyTripletAdapter(**settings)


@hookimpl
def lightning_adapters() -> list[Component[TraceAdapter[Any]]]:
    """Provide the adapters."""
    return [
        Component(
            name="triplet",
            factory=_triplet,
            config=TripletConfig,
            summary="LLM calls as (prompt, response, reward) triplets, with the engine's token ids",
            api_version=1,
        ),
        Component(
            name="llm-proxy-triplet",
            factory=_llm_proxy_triplet,
            config=LlmProxyTripletConfig,
            summary="The LLM calls that a gateway recorded, as triplets with the engine's token ids",
            api_version=1,
        ),
    ]
