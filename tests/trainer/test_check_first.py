"""``fit`` ends early when the first rollouts that succeed lack what the algorithm needs, and only then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from lightning_core import (
    BaseAlgorithm,
    FastAlgorithm,
    InMemoryLightningStore,
    PromptTemplate,
    Trainer,
    algo,
    emit_reward,
    rollout,
)
from lightning_core.algorithm import Need
from lightning_core.bridge import run_sync
from lightning_core.errors import CaptureError, ConfigurationError
from lightning_core.store.base import EnqueueRequest, StoreCapabilities
from lightning_core.trainer.check import first_look
from lightning_core.trainer.check.first_look import FirstLook
from lightning_core.trainer.scope import run_store
from lightning_core.types import Dataset, RolloutMode, RolloutV2, Span

from .fake_calls import emit_call

PROMPT = {"prompt": PromptTemplate(template="{question}")}


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "SETTLE_SECONDS", 0)


class Learner(FastAlgorithm):
    """Runs all tasks, waits for them, and says that it needs something."""

    def __init__(self, *needs: Need, within: int = 3, mode: RolloutMode | None = "train") -> None:
        self.needs = frozenset(needs)
        self.needs_within = within
        self.mode: RolloutMode | None = mode

    async def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Any = None) -> None:
        assert train_dataset is not None
        store = self.get_store()
        requests = [
            EnqueueRequest(input=train_dataset[index], mode=self.mode) for index in range(len(train_dataset))
        ]
        enqueued = await store.enqueue_rollouts(requests)
        await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in enqueued])


def trainer(algorithm: BaseAlgorithm, **settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", "initial_resources": PROMPT, "algorithm": algorithm, **settings})


def acting(act: Callable[[Any], Any]) -> Any:
    @rollout
    async def agent(task: Any, prompt_template: PromptTemplate) -> Any:
        # So that the other side gets its turn: a real agent waits for its model.
        await asyncio.sleep(0.002)
        return act(task)

    return agent


def nothing(task: Any) -> None:
    return None


def fails(number: int, otherwise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def act(task: int) -> Any:
        if task < number:
            raise RuntimeError("its own reasons")
        return otherwise(task)

    return act


class TestSomethingIsMissing:
    @pytest.mark.parametrize(
        ("need", "act", "cause"),
        [
            ("rewards", nothing, "needs rewards.*neither returned a reward nor emitted one.*emit_reward"),
            ("llm_calls", nothing, "none of its spans is a call.*the tracer is dummy.*otel"),
            ("token_ids", nothing, "needs token ids.*none of its spans is a call"),
            (
                "token_ids",
                lambda task: emit_call(ids=False),
                "the engine gave no prompt token ids; .*no response.*gateway",
            ),
            (
                "token_ids",
                lambda task: emit_call(ids=False, also={"lightning.llm_proxy.upstream": "u"}),
                "no response token ids. To put it right: the gateway got none from what serves the model",
            ),
            (
                "token_ids",
                lambda task: emit_call(answered=False),
                "no answer of a model was recorded. To put it right: let the instrumentation record contents",
            ),
            ("logprobs", lambda task: emit_call(), "the engine gave no log-probabilities.*logprobs=True"),
        ],
    )
    def test_the_run_fails_early_and_names_the_cause(
        self, need: Need, act: Callable[[Any], Any], cause: str
    ) -> None:
        train = trainer(Learner(need))
        with pytest.raises(CaptureError, match=cause):
            train.fit(acting(act), list(range(2000)))
        (run,) = run_sync(train.store.query_runs())
        assert run.status == "failed"
        assert run.error is not None
        assert run.error.startswith("CaptureError: Learner needs")
        counts = run_sync(train.store.statistics(run_id=run.run_id)).rollouts
        assert 3 <= counts["succeeded"] < 200

    def test_a_sync_algorithm_that_waits_is_ended_too(self) -> None:
        @algo(needs={"rewards"})
        def waits(*, store: Any, train_dataset: Any) -> None:
            requests = [EnqueueRequest(input=task, mode="train") for task in train_dataset]
            names = [one.rollout_id for one in run_sync(store.enqueue_rollouts(requests))]
            run_sync(store.wait_for_rollouts(rollout_ids=names))

        began = time.monotonic()
        with pytest.raises(CaptureError, match="waits needs rewards"):
            trainer(waits).fit(acting(nothing), list(range(2000)))
        assert time.monotonic() - began < 20

    def test_rollouts_put_in_one_after_another_are_looked_at(self) -> None:
        @algo(needs=["rewards"])
        async def one_by_one(*, store: Any, train_dataset: Any) -> None:
            for task in train_dataset:
                enqueued = await store.enqueue_rollout(task)
                await store.wait_for_rollouts(rollout_ids=[enqueued.rollout_id])

        train = trainer(one_by_one)
        with pytest.raises(CaptureError, match="the first 3 rollouts that succeeded"):
            train.fit(acting(nothing), list(range(500)))

    def test_failed_rollouts_say_nothing_and_later_ones_do(self) -> None:
        train = trainer(Learner("rewards"))
        with pytest.raises(CaptureError):
            train.fit(acting(fails(50, nothing)), list(range(500)))
        counts = run_sync(train.store.statistics()).rollouts
        assert counts["failed"] == 50
        assert counts["succeeded"] >= 3

    def test_the_first_one_without_is_logged_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        trainer(Learner("rewards")).fit(acting(lambda task: None if task == 0 else 1), list(range(5)))
        (record,) = [record for record in caplog.records if record.name.endswith("first_look")]
        assert "Learner needs rewards, and rollout" in record.getMessage()
        assert record.levelno == logging.WARNING


class TestNothingIsMissing:
    @pytest.mark.parametrize(
        "act",
        [
            lambda task: 1.0,
            lambda task: 0,
            lambda task: emit_reward(0.5) and None,
            lambda task: 1.0 if task == 2 else None,
            fails(10, lambda task: 1.0),
            fails(1000, nothing),
        ],
        ids=["returned", "zero", "emitted", "now and then", "after failures", "all fail"],
    )
    def test_the_run_goes_on(self, act: Callable[[Any], Any]) -> None:
        result = trainer(Learner("rewards")).fit(acting(act), list(range(30)))
        assert result.status == "succeeded"

    def test_every_need_is_found_in_a_whole_trace(self) -> None:
        def act(task: Any) -> float:
            emit_call(logprobs=True)
            return 1.0

        algorithm = Learner("rewards", "llm_calls", "token_ids", "logprobs")
        assert trainer(algorithm).fit(acting(act), list(range(10))).status == "succeeded"

    def test_fewer_rollouts_than_make_it_certain(self) -> None:
        assert trainer(Learner("rewards")).fit(acting(nothing), [0, 1]).status == "succeeded"

    def test_an_algorithm_may_be_more_patient(self) -> None:
        agent = acting(lambda task: 1.0 if task == 5 else None)
        tasks = list(range(100))
        assert trainer(Learner("rewards", within=6)).fit(agent, tasks).status == "succeeded"
        with pytest.raises(CaptureError, match="first 5 rollouts"):
            trainer(Learner("rewards", within=5)).fit(agent, tasks)

    def test_validation_is_not_looked_at(self) -> None:
        result = trainer(Learner("rewards", mode="val")).fit(acting(nothing), list(range(30)))
        assert result.status == "succeeded"

    def test_an_algorithm_without_needs_is_not_looked_after(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError

        monkeypatch.setattr(first_look, "FirstLook", refuse)
        assert trainer(Learner()).fit(acting(nothing), list(range(5))).status == "succeeded"

    def test_spans_may_come_a_little_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train = trainer(Learner("rewards"))
        pause = asyncio.sleep

        async def late(seconds: float) -> None:
            if seconds != 123:
                await pause(seconds)
                return
            for one in await train.store.query_rollouts(status=["succeeded"]):
                attempt = await train.store.get_latest_attempt(one.rollout_id)
                assert attempt is not None
                await train.store.add_span(
                    Span.from_attributes(
                        name="lightning.reward",
                        attributes={"reward": 1.0},
                        rollout_id=one.rollout_id,
                        attempt_id=attempt.attempt_id,
                    )
                )

        monkeypatch.setattr(first_look, "SETTLE_SECONDS", 123)
        monkeypatch.setattr(asyncio, "sleep", late)
        assert train.fit(acting(nothing), list(range(30))).status == "succeeded"


class Counting(InMemoryLightningStore):
    """Counts what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.waits = 0

    async def query_spans(self, *arguments: Any, **others: Any) -> Any:
        self.reads += 1
        return await super().query_spans(*arguments, **others)

    async def wait_for_rollouts(self, **arguments: Any) -> Any:
        self.waits += 1
        return await super().wait_for_rollouts(**arguments)


def test_nothing_is_looked_at_once_all_was_found() -> None:
    store = Counting()
    trainer(Learner("rewards"), store=store).fit(acting(lambda task: 1.0), list(range(200)))
    assert store.reads <= 32
    assert store.waits <= 5


def test_what_a_resumed_run_finds_finished_is_passed_over() -> None:
    class Durable(InMemoryLightningStore):
        capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(durable=True)

    store = Durable()
    tasks = list(range(20))
    with pytest.raises(CaptureError) as caught:
        trainer(Learner("rewards"), store=store).fit(acting(nothing), tasks)
    assert "resume=" in caught.value.__notes__[0]
    result = trainer(Learner("rewards"), store=store).fit(acting(lambda task: 1.0), tasks, resume=True)
    assert result.status == "succeeded"
    assert result.rollouts["succeeded"] == 20


def test_a_store_that_fails_the_look_does_not_fail_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(InMemoryLightningStore):
        async def query_spans(self, *arguments: Any, **others: Any) -> Any:
            raise OSError("no spans today")

    train = trainer(Learner("rewards"), store=Broken())
    assert train.fit(acting(nothing), list(range(10))).status == "succeeded"
    assert "could not be looked at: no spans today" in caplog.text


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"reward"}, "Learner.needs holds 'reward'; did you mean 'rewards'"),
        ({"gold"}, "holds 'gold'; An algorithm may need rewards, llm_calls, token_ids, logprobs"),
    ],
)
def test_a_need_that_nobody_knows_is_refused(needs: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(Learner(*needs)).fit(acting(nothing), [0])


def test_needs_within_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs_within must be at least 1, not 0"):
        trainer(Learner("rewards", within=0)).fit(acting(nothing), [0])


def test_a_single_need_may_be_a_word() -> None:
    @algo(needs="rewards")
    async def algorithm(*, store: Any) -> None: ...

    assert algorithm.needs == {"rewards"}


class TestBeside:
    """What surrounds the algorithm takes nothing away from it."""

    @staticmethod
    def look(algorithm: BaseAlgorithm | None = None) -> FirstLook:
        return FirstLook(algorithm or Learner("rewards"), run_store(InMemoryLightningStore(), "run-1"))

    async def test_cancellation_from_outside_stays_one(self) -> None:
        begun = asyncio.Event()

        async def run() -> None:
            async with self.look().beside():
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(run())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_both_at_once_is_a_cancellation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        look = self.look()

        async def fail() -> None:
            raise CaptureError("missing")

        monkeypatch.setattr(look, "_look", fail)
        begun = asyncio.Event()

        async def run() -> None:
            async with look.beside():
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(run())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_an_error_of_the_algorithm_is_its_own(self) -> None:
        look = self.look()
        with pytest.raises(KeyError):
            async with look.beside():
                raise KeyError
        assert look._scope.on_new is None

    async def test_an_algorithm_that_heeds_no_cancellation_does_not_hide_the_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = self.look()

        async def fail() -> None:
            raise CaptureError("missing")

        monkeypatch.setattr(look, "_look", fail)

        async def run() -> None:
            async with look.beside():
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

        with pytest.raises(CaptureError, match="missing"):
            await run()

    async def test_no_more_than_the_most_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(first_look, "MOST_ROLLOUTS", 5)
        look = self.look()
        async with look.beside():
            rollouts = [RolloutV2(rollout_id=f"ro-{number}", input=0, start_time=0) for number in range(9)]
            await self.remembered(look, rollouts[:3])
            assert look._scope.on_new is not None
            await self.remembered(look, rollouts[3:])
            assert len(look._pending) == 5
            assert look._scope.on_new is None

    @staticmethod
    async def remembered(look: FirstLook, rollouts: Sequence[RolloutV2]) -> None:
        look._note(rollouts)
        await asyncio.sleep(0)
