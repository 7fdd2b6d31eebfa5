"""Registers the adapters ``triplet`` and ``llm-proxy-triplet``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lightning_core import Component, hookimpl
from lightning_core.adapter.settings import CallSettings, Pattern
from lightning_core.errors import LightningError

from .policy import RewardMatchPolicy, as_given

if TYPE_CHECKING:
    from lightning_core import TraceAdapter


class RewardSettings(BaseModel):
    """How rewards are matched with calls."""

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


class TripletConfig(CallSettings, RewardSettings):
    """Settings of the adapter ``triplet``."""


class LlmProxyTripletConfig(RewardSettings):
    """Settings of the adapter ``llm-proxy-triplet``."""

    llm_call_match: Pattern | None = Field(
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
