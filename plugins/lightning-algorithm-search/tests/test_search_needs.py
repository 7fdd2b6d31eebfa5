"""A search without rewards ends before it has run its first rung."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightning_algorithm_search import SearchAlgorithm

from lightning_core import PromptTemplate, Trainer, rollout
from lightning_core.bridge import run_sync
from lightning_core.errors import CaptureError


def trainer(**settings: Any) -> Trainer:
    return Trainer(
        tracer="dummy",
        algorithm=SearchAlgorithm(["{question}", "{question}?"], report=False, **settings),
        initial_resources={"prompt": PromptTemplate(template="{question}")},
    )


def rewarding(every: int | None) -> Any:
    @rollout
    async def agent(task: int, prompt_template: PromptTemplate) -> float | None:
        await asyncio.sleep(0.002)
        return 1.0 if every is not None and task % every == 0 else None

    return agent


def test_an_agent_that_gives_no_reward_is_found_early() -> None:
    train = trainer(rollouts_per_candidate=1500)
    with pytest.raises(
        CaptureError, match="SearchAlgorithm needs rewards, and each of the first 16 rollouts"
    ):
        train.fit(rewarding(None), list(range(1500)))
    # Of the two times 1,500 of the first rung.
    assert run_sync(train.store.statistics()).rollouts["succeeded"] < 2900


def test_one_that_gives_a_reward_now_and_then_is_not() -> None:
    assert trainer(rollouts_per_candidate=16).fit(rewarding(4), list(range(40))).status == "succeeded"
