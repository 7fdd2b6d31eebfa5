"""Registers the ``search`` algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lightning_core import BaseAlgorithm, Component, hookimpl
from lightning_core.types import PromptTemplate

if TYPE_CHECKING:
    from .algorithm import SearchAlgorithm

__all__ = ["SearchConfig", "lightning_algorithms"]


class SearchConfig(BaseModel):
    """Settings of the ``search`` algorithm. A candidate is a template with sampling parameters."""

    model_config = ConfigDict(extra="forbid")

    templates: list[str | PromptTemplate] | dict[str, str | PromptTemplate] | None = Field(
        default=None,
        description=(
            "Prompt templates to try: texts, or mappings with `template` and `engine`; by name, or as a list. "
            "The first one is what the winner is compared with. None: the one of the initial resources."
        ),
    )
    sampling: list[dict[str, Any]] | None = Field(
        default=None,
        description="Sampling parameters to try with each template, such as {temperature: 0, top_p: 0.9}.",
    )
    temperatures: list[float] | None = Field(
        default=None, description="Temperatures to try with each template and each entry of `sampling`."
    )
    rollouts_per_candidate: int | None = Field(
        default=None,
        ge=2,
        description=(
            "How many training tasks each candidate gets in the first rung. None: 16, or what `budget` allows."
        ),
    )
    budget: int | None = Field(
        default=None,
        ge=2,
        description="The most training rollouts in all, as another way to say rollouts_per_candidate.",
    )
    eta: int = Field(default=3, ge=2, description="A rung keeps one of so many candidates.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence level of the intervals.")
    without_reward: Literal["zero", "exclude"] = Field(
        default="zero",
        description=(
            "What a rollout counts that failed or gave no reward: a reward of 0, or nothing. Both are reported."
        ),
    )
    seed: int = Field(default=0, description="Seed for the order of the training tasks.")
    prompt: str | None = Field(
        default=None,
        description="Name of the prompt resource. None: that of the initial resources, else prompt_template.",
    )
    llm: str | None = Field(
        default=None,
        description="Name of the model resource whose sampling parameters change. None: the only one there is.",
    )
    max_attempts: int = Field(default=1, ge=1, description="How often each rollout may be tried.")
    timeout_seconds: float | None = Field(
        default=None, gt=0, description="Time limit of an attempt, in seconds. None: no limit."
    )
    report: bool = Field(
        default=True, description="Write the table of results to the standard output at the end."
    )


def _make(**settings: Any) -> SearchAlgorithm:
    from .algorithm import SearchAlgorithm

    return SearchAlgorithm(**settings)


@hookimpl
def lightning_algorithms() -> Iterable[Component[BaseAlgorithm]]:
    """Register the algorithm."""
    return [
        Component(
            name="search",
            factory=_make,
            config=SearchConfig,
            summary="Finds the best of several prompt templates and sampling settings by successive halving.",
            api_version=1,
        )
    ]
