"""The baseline, and algorithms made of functions."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lightning_core import LLM, Trainer, algo, emit_reward, rollout
from lightning_core.algorithm import Baseline, MockAlgorithm
from lightning_core.bridge import run_sync
from lightning_core.errors import ConfigurationError, UnserializableValueError

RESOURCES = {"llm": LLM(endpoint="http://localhost/v1", model="m")}


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", "initial_resources": RESOURCES, **settings})


def test_baseline_logs_statuses_spans_and_rewards(caplog: pytest.LogCaptureFixture):
    @rollout
    async def agent(task: float, llm: LLM) -> float:
        if task < 0:
            raise ValueError("negative task")
        return task

    caplog.set_level(logging.INFO, "lightning_core")
    result = trainer(algorithm="baseline").fit(agent, [0.0, 1.0, -1.0])
    assert result.metrics[0] | {"time": 0} == {
        "time": 0,
        "mode": "train",
        "epoch": 0,
        "rollouts": 3,
        "succeeded": 2,
        "failed": 1,
        "spans": 3,
        "rewards": 2,
        "mean_reward": 0.5,
    }
    assert "1 failed, 2 succeeded; 3 spans; 2 rewards, mean 0.5" in caplog.text
    assert "negative task" in caplog.text


def test_trap_23_baseline_says_that_there_is_no_reward_at_all(caplog: pytest.LogCaptureFixture):

    @rollout
    async def agent(task: float, llm: LLM) -> None:
        return None

    trainer(algorithm="baseline").fit(agent, [0.0])
    assert "no rollout gave a reward" in caplog.text


def test_trap_23_baseline_counts_no_reward_of_a_failed_rollout_and_says_so(caplog: pytest.LogCaptureFixture):
    @rollout
    async def agent(task: float, llm: LLM) -> float:
        if task < 0:
            emit_reward(100.0)
            raise ValueError("negative task")
        return task

    result = trainer(algorithm="baseline").fit(agent, [0.5, -1.0])
    assert (result.metrics[0]["rewards"], result.metrics[0]["mean_reward"]) == (1, 0.5)
    assert "1 rollouts that did not succeed gave a reward" in caplog.text


def test_trap_23_baseline_says_that_no_rollout_succeeded(caplog: pytest.LogCaptureFixture):
    @rollout
    async def agent(task: float, llm: LLM) -> float:
        raise ValueError("never")

    result = trainer(algorithm="baseline").fit(agent, [0.5, -1.0])
    assert result.metrics[0]["mean_reward"] is None
    assert "no rollout succeeded, so there is nothing to learn from" in caplog.text


def test_baseline_needs_tasks():
    @rollout
    async def agent(task: float, llm: LLM) -> None:
        return None

    with pytest.raises(ConfigurationError, match="needs tasks"):
        trainer(algorithm="baseline").fit(agent)
    with pytest.raises(ConfigurationError, match="n_epochs"):
        Baseline(n_epochs=0)
    assert MockAlgorithm is Baseline


@rollout
async def echo(task: float, llm: LLM) -> float:
    return task


@pytest.mark.parametrize("sync", [False, True])
def test_algo_gets_what_it_asks_for_and_returns_the_best_resources(sync: bool):
    seen: dict[str, Any] = {}

    async def work(store: Any, train_dataset: Any) -> None:
        rollouts = [await store.enqueue_rollout(task, mode="train") for task in train_dataset]
        done = await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in rollouts])
        seen["statuses"] = [one.status for one in done]

    @algo
    async def coroutine(*, store: Any, train_dataset: Any, initial_resources: Any, algorithm: Any) -> Any:
        await work(store, train_dataset)
        algorithm.log_metrics(loss=0.1)
        return initial_resources

    @algo
    def function(*, store: Any, train_dataset: Any, initial_resources: Any, algorithm: Any) -> Any:
        run_sync(work(store, train_dataset))
        algorithm.log_metrics(loss=0.1)
        return initial_resources

    result = trainer(algorithm=function if sync else coroutine).fit(echo, [1.0, 2.0])
    assert seen["statuses"] == ["succeeded"] * 2
    assert result.best_resources == RESOURCES
    assert result.metrics[0]["loss"] == 0.1


class Scalar:
    """What numpy's scalars and tensors without dimensions have in common."""

    ndim = 0

    def item(self) -> float:
        return 2.5


def test_metrics_that_cannot_be_kept_are_refused_when_they_are_logged():
    """At the end of the run they would cost the whole result."""

    @algo
    async def learn(*, algorithm: Any) -> None:
        with pytest.raises(UnserializableValueError, match="'model' is of type object"):
            algorithm.log_metrics(model=object())
        algorithm.log_metrics(loss=Scalar(), diverged=float("nan"))

    @rollout
    async def agent(task: float, llm: LLM) -> float:
        return task

    train = trainer(algorithm=learn)
    (entry,) = train.fit(agent, [1.0]).metrics
    assert entry["loss"] == 2.5
    (run,) = run_sync(train.store.query_runs())
    assert run.result is not None
    assert [each["diverged"] for each in run.result["metrics"]] == [None]


def test_algo_stays_callable():
    @algo
    def double(algorithm: int) -> int:
        return algorithm * 2

    assert double(21) == 42
    assert double.__name__ == "double"


def test_algo_that_asks_for_something_unknown_is_refused():
    with pytest.raises(ConfigurationError, match="'datset'"):

        @algo
        def wrong(datset: Any) -> None:
            """Asks for what nobody gives."""


def test_algo_that_returns_something_else_is_refused():
    @algo
    def wrong() -> Any:
        return 0.9

    with pytest.raises(ConfigurationError, match="returned a float"):
        trainer(algorithm=wrong).fit(echo, [1.0])


def test_an_algorithm_without_its_parts_says_who_gives_them():
    baseline = Baseline()
    for get in (baseline.get_store, baseline.get_trainer, baseline.get_adapter):
        with pytest.raises(ConfigurationError, match=r"Trainer"):
            get()
