"""The contract of a strategy, checked through ``Trainer.fit``: with any agent, to any end, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from lightning_core.algorithm import algo
from lightning_core.bridge import run_sync
from lightning_core.emitter import find_final_reward
from lightning_core.errors import ExecutionError
from lightning_core.execution.base import ExecutionStrategy
from lightning_core.litagent import LitAgent, rollout
from lightning_core.store.base import LightningStore
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.trainer import Trainer, TrainingResult
from lightning_core.types import LLM, Hook

__all__ = ["MakeStrategy", "StrategyConformance"]

MakeStrategy: TypeAlias = Callable[[int], ExecutionStrategy]
"""Makes a strategy with that many runners, which gives what is in hand at the end about half a second."""

_PATIENCE = 60.0
"""How long a test waits for what must happen, in seconds, on a slow machine."""


class _Scribe(Hook):
    """Writes a line into a file for each event, with the process that it happens in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, event: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{event} {os.getpid()}\n")

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self._write("init_worker")

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self._write("teardown_worker")

    async def on_rollout_start(self, **keywords: Any) -> None:
        self._write("start")

    async def on_rollout_end(self, *, spans: Any, **keywords: Any) -> None:
        self._write(f"end-with-{len(spans)}")


class _Broken(Hook):
    """Keeps runners from starting."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        raise ValueError("no display")


class _Echo(LitAgent[Any]):
    """Returns the task as its reward."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        return task * self.factor


def _hanging_agent(folder: Path) -> LitAgent[Any]:
    """An agent that says by a file that it has begun, and never ends by itself."""

    @rollout
    async def hangs(task: Any, llm: LLM) -> float:
        (folder / f"begun-{task}").touch()
        await asyncio.Event().wait()
        return 0.0

    return hangs


async def _begun(folder: Path, number: int) -> None:
    """Wait until so many rollouts have begun."""
    async with asyncio.timeout(_PATIENCE):
        while len(list(folder.glob("begun-*"))) < number:  # noqa: ASYNC110, ASYNC240 - of another process
            await asyncio.sleep(0.02)


class StrategyConformance:
    """What every strategy promises. Inherit it and override the fixture ``make_strategy``; pytest does the rest.

    The strategy executes all of its sides on this machine. Agents, algorithms and hooks of the tests go wherever it
    takes them, functions inside of functions among them.

    Example:
        ::

            class TestMyStrategy(StrategyConformance):
                @pytest.fixture
                def make_strategy(self):
                    return lambda n_runners: MyStrategy(n_runners, graceful_seconds=0.5)
    """

    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        """Override this: return a function that makes a strategy, given the number of its runners."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_strategy")

    @pytest.fixture
    def store(self) -> Iterator[LightningStore]:
        """An empty store; override it to use another one."""
        store = InMemoryLightningStore()
        yield store
        run_sync(store.close())

    @pytest.fixture
    def make_trainer(self, make_strategy: MakeStrategy, store: LightningStore) -> Callable[..., Trainer]:
        """Makes a trainer with the strategy and the store."""

        def make(n_runners: int = 2, **settings: Any) -> Trainer:
            given: dict[str, Any] = {
                "algorithm": "baseline",
                "tracer": "dummy",
                "initial_resources": {"llm": LLM(endpoint="http://localhost", model="none")},
                "strategy": make_strategy(n_runners),
                "store": store,
            }
            return Trainer(**{**given, **settings})

        return make

    # Every kind of agent and algorithm

    def test_every_rollout_runs_once(
        self, make_trainer: Callable[..., Trainer], store: LightningStore
    ) -> None:
        """With two runners, whoever takes it."""
        offset = 0.5

        @rollout
        async def nested(task: Any, llm: LLM) -> float:
            await asyncio.sleep(0)
            return task + offset

        result = make_trainer().fit(nested, list(range(20)))
        assert result.status == "succeeded"
        assert _rewards(store, result) == [task + 0.5 for task in range(20)]
        for found in run_sync(store.query_rollouts(run_id=result.run_id)):
            [attempt] = run_sync(store.query_attempts(found.rollout_id))
            assert attempt.status == "succeeded"

    def test_a_sync_agent_of_a_local_class(
        self, make_trainer: Callable[..., Trainer], store: LightningStore
    ) -> None:
        """A class that only this function knows, and its state."""

        class Local(_Echo):
            def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
                return super().training_rollout(task, resources, rollout) + 1

        result = make_trainer().fit(Local(2.0), [1, 2, 3])
        assert _rewards(store, result) == [3.0, 5.0, 7.0]

    def test_a_sync_algorithm(self, make_trainer: Callable[..., Trainer], store: LightningStore) -> None:
        """It runs in a thread, and its datasets and metrics are its own."""

        @algo
        def sync(*, algorithm: Any, store: Any, train_dataset: Any) -> dict[str, Any]:
            names = [run_sync(store.enqueue_rollout(task)).rollout_id for task in train_dataset]
            done = run_sync(store.wait_for_rollouts(rollout_ids=names))
            algorithm.log_metrics(done=len(done))
            return {"best": LLM(endpoint="http://localhost", model="best")}

        result = make_trainer(algorithm=sync).fit(_Echo(1.0), [1, 2, 3])
        assert [entry["done"] for entry in result.metrics] == [3]
        assert result.best_resources is not None
        assert result.best_resources["best"].model == "best"  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - an LLM
        assert _rewards(store, result) == [1.0, 2.0, 3.0]

    def test_a_failing_agent_fails_its_rollout_alone(
        self, make_trainer: Callable[..., Trainer], store: LightningStore
    ) -> None:
        """The run goes on."""

        @rollout
        def picky(task: Any, llm: LLM) -> float:
            if task == 2:
                raise RuntimeError("not this one")
            return 1.0

        result = make_trainer().fit(picky, [1, 2, 3])
        assert result.status == "succeeded"
        assert result.rollouts == {"succeeded": 2, "failed": 1}

    def test_hooks_run_in_the_workers(self, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
        """Each worker begins and ends once, and each rollout; the end sees the spans that are stored."""
        path = tmp_path / "events"
        make_trainer(hooks=[_Scribe(path)]).fit(_Echo(1.0), [1, 2, 3, 4])
        events = Counter(line.split()[0] for line in path.read_text(encoding="utf-8").splitlines())
        assert events == {"init_worker": 2, "teardown_worker": 2, "start": 4, "end-with-1": 4}

    # Every end

    def test_an_error_of_the_algorithm_is_raised_as_it_is(self, make_trainer: Callable[..., Trainer]) -> None:
        """Not wrapped, wherever the algorithm runs."""

        @algo
        async def broken(*, store: Any) -> None:
            raise KeyError("lost")

        with pytest.raises(KeyError, match="lost"):
            make_trainer(algorithm=broken).fit(_Echo(1.0), [1])

    def test_a_runner_that_cannot_run_ends_the_run(self, make_trainer: Callable[..., Trainer]) -> None:
        """Its error is told, and the algorithm does not wait for ever."""
        with pytest.raises(ExecutionError, match="ValueError: no display"):
            make_trainer(hooks=[_Broken()]).fit(_Echo(1.0), [1])

    def test_the_end_of_the_algorithm_ends_idle_runners(self, make_trainer: Callable[..., Trainer]) -> None:
        """Though they wait for work."""

        @algo
        async def nothing(*, store: Any) -> None:
            return

        assert make_trainer(algorithm=nothing).fit(_Echo(1.0), [1]).status == "succeeded"

    def test_the_end_of_the_algorithm_cancels_what_does_not_end(
        self, make_trainer: Callable[..., Trainer], store: LightningStore, tmp_path: Path
    ) -> None:
        """A rollout that hangs has its time, and is cancelled."""

        @algo
        async def impatient(*, store: Any, train_dataset: Any) -> None:
            for task in train_dataset:
                await store.enqueue_rollout(task)
            await _begun(tmp_path, 2)

        result = make_trainer(algorithm=impatient).fit(_hanging_agent(tmp_path), [1, 2])
        assert result.rollouts == {"cancelled": 2}
        for found in run_sync(store.query_rollouts(run_id=result.run_id)):
            attempt = run_sync(store.get_latest_attempt(found.rollout_id))
            assert attempt is not None
            assert (attempt.status, attempt.reason) == ("cancelled", "cancelled")

    def test_runners_that_reach_max_rollouts_end_the_run(self, make_trainer: Callable[..., Trainer]) -> None:
        """What the algorithm still waits for will not come."""
        result = make_trainer(2, max_rollouts=2).fit(_Echo(1.0), [1, 2, 3, 4, 5])
        assert result.status == "cancelled"
        assert result.rollouts == {"succeeded": 4, "queuing": 1}

    @pytest.mark.skipif(os.name == "nt", reason="sends SIGINT as a terminal does")
    def test_ctrl_c_ends_everything_with_130(
        self, make_trainer: Callable[..., Trainer], store: LightningStore, tmp_path: Path
    ) -> None:
        """What was in hand ends cancelled."""
        process = os.getpid()

        @algo
        async def interrupted(*, store: Any, train_dataset: Any) -> None:
            for task in train_dataset:
                await store.enqueue_rollout(task)
            await _begun(tmp_path, 2)
            os.kill(process, signal.SIGINT)
            await asyncio.Event().wait()

        with pytest.raises(SystemExit) as end:
            make_trainer(algorithm=interrupted).fit(_hanging_agent(tmp_path), [1, 2])
        assert end.value.code == 130
        assert {found.status for found in run_sync(store.query_rollouts())} == {"cancelled"}
        [run] = run_sync(store.query_runs())
        assert run.status == "cancelled"

    # Afterwards

    def test_a_strategy_serves_again_and_leaves_nothing_behind(
        self, make_trainer: Callable[..., Trainer]
    ) -> None:
        """A run leaves no more threads, processes and open files than there were before it."""
        trainer = make_trainer()
        assert trainer.fit(_Echo(1.0), [1, 2]).rollouts == {"succeeded": 2}
        left = Counter[str]()
        # A pool, such as a store's of connections, may still grow in one run; a leak grows in each.
        for _ in range(3):
            before = _settled()
            assert trainer.fit(_Echo(1.0), [1, 2, 3]).rollouts == {"succeeded": 3}
            left = _left_since(before)
            if not left:
                break
        assert left == Counter()

    async def test_it_works_where_an_event_loop_runs(self, make_trainer: Callable[..., Trainer]) -> None:
        """Notebooks run one."""
        assert make_trainer().fit(_Echo(1.0), [1, 2]).rollouts == {"succeeded": 2}


def _rewards(store: LightningStore, result: TrainingResult) -> list[float | None]:
    """The final rewards of a run, in the order of its tasks."""
    rollouts = run_sync(store.query_rollouts(run_id=result.run_id))
    return [find_final_reward(run_sync(store.query_spans(found.rollout_id))) for found in rollouts]


def _left_since(before: Counter[str]) -> Counter[str]:
    """What this process holds besides, also after the moment that threads may take to end.

    What it does not hold any more does not count: other tests may have left something, which ends when it likes.
    """
    give_up = time.monotonic() + 20.0
    while (left := _held() - before) and time.monotonic() < give_up:
        threading.Event().wait(0.05)
    return left


def _settled() -> Counter[str]:
    """What this process holds, once two looks in a row find the same."""
    held = _held()
    for _ in range(100):
        threading.Event().wait(0.05)
        last, held = held, _held()
        if held == last:
            break
    return held


def _held() -> Counter[str]:
    """How many threads of each name, child processes and open files this process has."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    # Those of a pool, which have a number, come when there is work for them and stay.
    threads = Counter(
        f"thread {thread.name}" for thread in threading.enumerate() if not re.search(r"_\d+$", thread.name)
    )
    return threads + Counter({"child processes": len(multiprocessing.active_children()), "open files": files})
