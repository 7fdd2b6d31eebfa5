"""A run whose rollouts lack what the algorithm needs ends early with the client-server strategy too."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Literal

import pytest

from lightning_core import LLM, FastAlgorithm, Trainer, rollout
from lightning_core.bridge import run_sync
from lightning_core.errors import CaptureError
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import Dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")


class Learner(FastAlgorithm):
    """Needs rewards, and would wait for all of its rollouts."""

    needs = frozenset({"rewards"})

    async def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Any = None) -> None:
        assert train_dataset is not None
        store = self.get_store()
        requests = [
            EnqueueRequest(input=train_dataset[index], mode="train") for index in range(len(train_dataset))
        ]
        enqueued = await store.enqueue_rollouts(requests)
        await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in enqueued])


@rollout
async def agent(task: Any, llm: LLM) -> float | None:
    if task == "late":
        await asyncio.sleep(60)
    if task == "fails":
        raise RuntimeError("its own reasons")
    return 1.0 if task == "rewarded" else None


def trainer(main_process: Literal["algorithm", "runner"]) -> Trainer:
    return Trainer(
        algorithm=Learner(),
        tracer="dummy",
        initial_resources={"llm": LLM(endpoint="http://localhost", model="none")},
        strategy={
            "type": "cs",
            "start_method": "fork",
            "main_process": main_process,
            "graceful_seconds": 0.5,
            "terminate_seconds": 1.0,
        },
    )


@pytest.mark.parametrize("main_process", ["algorithm", "runner"])
def test_the_run_fails_early_and_names_the_cause(main_process: Literal["algorithm", "runner"]) -> None:
    train = trainer(main_process)
    began = time.monotonic()
    with pytest.raises(CaptureError, match="Learner needs rewards, and each of the first 3"):
        train.fit(agent, ["fails", "a", "b", "c", *["late"] * 50])
    assert time.monotonic() - began < 40
    (run,) = run_sync(train.store.query_runs())
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.startswith("CaptureError")


@pytest.mark.parametrize("main_process", ["algorithm", "runner"])
def test_a_reward_now_and_then_is_enough(main_process: Literal["algorithm", "runner"]) -> None:
    result = trainer(main_process).fit(agent, ["fails", "a", "b", "rewarded", *["c"] * 10])
    assert result.status == "succeeded"
