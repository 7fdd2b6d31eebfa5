"""What Agent Lightning's reference says of a name beyond its signature, where no other test is about that."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_core.adapter import TraceAdapter
from lightning_core.algorithm import FastAlgorithm
from lightning_core.litagent import LitAgent
from lightning_core.runner import AgentRunnerV2, BaseRunner
from lightning_core.store import InMemoryLightningStore, LightningStore
from lightning_core.tracer import DummyTracer
from lightning_core.trainer import Trainer
from lightning_core.types import Hook, NamedResources, ParallelWorkerBase, PromptTemplate, RolloutV2

PROMPT: NamedResources = {"prompt": PromptTemplate(template="first")}


class Echo(LitAgent[Any]):
    """Notes which prompt it was given, and fails if the task says so."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        self.error = ZeroDivisionError("the very one")

    def rollout(self, task: Any, resources: NamedResources, rollout: RolloutV2) -> float:
        prompt = resources["prompt"]
        assert isinstance(prompt, PromptTemplate)
        self.prompts.append(prompt.template)
        if task == "fail":
            raise self.error
        return 1.0


# BaseRunner


class Journal(BaseRunner[Any]):
    """A runner that notes what is called."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[Any] = []
        self.fails = fails

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name == self.fails:
            raise RuntimeError(name)

    def init(self, agent: LitAgent[Any], **kwargs: Any) -> None:
        self.note("init", agent, kwargs)

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        self.note("init_worker", worker_id, store)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self.note("teardown_worker", worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.note("teardown")


async def test_a_runner_must_implement_everything_but_run() -> None:
    runner: BaseRunner[Any] = BaseRunner()
    agent, store = Echo(), InMemoryLightningStore()
    for call in (
        lambda: runner.init(agent),
        lambda: runner.init_worker(0, store),
        lambda: runner.teardown_worker(0),
        lambda: runner.teardown(),
    ):
        with pytest.raises(NotImplementedError, match="BaseRunner does not implement"):
            call()
    with pytest.raises(NotImplementedError):
        await runner.iter()
    with pytest.raises(NotImplementedError):
        await runner.step("task")
    with pytest.raises(RuntimeError, match="iter"):
        runner.run("any", thing="else")
    await store.close()


def fail(expected: bool) -> None:
    assert expected
    raise KeyError("the block fails")


async def test_run_context_sets_any_runner_up_and_takes_it_down() -> None:
    runner, agent, store, hooks = Journal(), Echo(), InMemoryLightningStore(), [Hook()]
    with (
        pytest.raises(KeyError, match="the block fails"),
        runner.run_context(agent=agent, store=store, hooks=hooks) as ready,
    ):
        fail(ready is runner)
    assert runner.calls == [
        ("init", agent, {"hooks": hooks}),
        ("init_worker", 0, store),
        ("teardown_worker", 0),
        ("teardown",),
    ]
    await store.close()


@pytest.mark.parametrize(
    ("fails", "called"),
    [
        ("init", ["init"]),
        ("init_worker", ["init", "init_worker", "teardown"]),
        ("teardown_worker", ["init", "init_worker", "teardown_worker", "teardown"]),
    ],
)
async def test_run_context_takes_down_what_it_has_set_up(fails: str, called: list[str]) -> None:
    runner, store = Journal(fails), InMemoryLightningStore()
    with pytest.raises(RuntimeError, match=fails), runner.run_context(agent=Echo(), store=store):
        pass
    assert [name for name, *_ in runner.calls] == called
    await store.close()


# AgentRunnerV2


class Torn(DummyTracer):
    """A tracer that notes its life."""

    def __init__(self) -> None:
        super().__init__()
        self.life: list[Any] = []

    def init(self, *args: Any, **kwargs: Any) -> None:
        self.life.append("init")

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self.life.append(worker_id)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self.life.append(-worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.life.append("teardown")


async def test_a_runner_hands_its_life_on_to_the_tracer_and_forgets_everything() -> None:
    tracer, agent, store = Torn(), Echo(), InMemoryLightningStore()
    runner: AgentRunnerV2[Any] = AgentRunnerV2(tracer)
    assert runner.get_worker_id() == "Worker-Unknown"
    runner.init(agent, hooks=[Hook()], anything="else")
    runner.init_worker(3, store, anything="else")
    assert (runner.get_worker_id(), runner.worker_id) == ("Worker-3", 3)
    assert (runner.get_agent(), runner.get_store()) == (agent, store)
    runner.teardown_worker(3, "any", thing="else")
    assert (runner.get_worker_id(), runner.worker_id) == ("Worker-Unknown", None)
    runner.teardown("any", thing="else")
    assert tracer.life == ["init", 3, -3, "teardown"]
    for get in (runner.get_agent, runner.get_store):
        with pytest.raises(ValueError, match="init"):
            get()
    await store.close()


async def test_a_step_uses_the_latest_resources_or_stores_its_own() -> None:
    agent, store = Echo(), InMemoryLightningStore()
    await store.add_resources(PROMPT)
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer())
    with runner.run_context(agent=agent, store=store):
        await runner.step("task")
        done = await runner.step("task", resources={"prompt": PromptTemplate(template="second")}, mode="test")
    assert agent.prompts == ["first", "second"]
    assert done.mode == "test"
    latest = await store.get_latest_resources()
    assert latest is not None
    assert done.resources_id == latest.resources_id
    await store.close()


async def test_a_step_raises_what_the_agent_raises_and_iter_goes_on() -> None:
    agent, store = Echo(), InMemoryLightningStore()
    await store.add_resources(PROMPT)
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), max_rollouts=2)
    with runner.run_context(agent=agent, store=store):
        with pytest.raises(ZeroDivisionError) as raised:
            await runner.step("fail")
        assert raised.value is agent.error
        failing = await store.enqueue_rollout("fail")
        working = await store.enqueue_rollout("task")
        await runner.iter()
    ended = [await store.get_rollout_by_id(each.rollout_id) for each in (failing, working)]
    assert [each.status for each in ended if each is not None] == ["failed", "succeeded"]
    await store.close()


async def test_the_agent_finds_its_runner_tracer_and_trainer() -> None:
    agent, store, tracer, trainer = Echo(), InMemoryLightningStore(), DummyTracer(), Trainer(tracer="dummy")
    runner: AgentRunnerV2[Any] = AgentRunnerV2(tracer)
    agent.set_trainer(trainer)
    with runner.run_context(agent=agent, store=store):
        assert agent.runner is agent.get_runner() is runner
        assert agent.tracer is agent.get_tracer() is tracer
        assert agent.trainer is agent.get_trainer() is trainer
    await store.close()


# ParallelWorkerBase


def test_a_worker_goes_through_its_life_in_order() -> None:
    class Worker(ParallelWorkerBase):
        def __init__(self) -> None:
            self.ran: list[Any] = []

        def run(self, *args: Any, **kwargs: Any) -> Any:
            self.ran.append((self.worker_id, args, kwargs))
            return "done"

    worker = Worker()
    assert worker.worker_id is None
    worker.init("any", thing="else")
    worker.init_worker(2, "any", thing="else")
    assert worker.run(1, two=2) == "done"
    worker.teardown_worker(2)
    worker.teardown()
    assert worker.ran == [(2, (1,), {"two": 2})]


# BaseTracer


async def test_a_function_is_traced_and_what_it_raises_is_raised() -> None:
    tracer = DummyTracer()

    def fail(text: str, *, much: int) -> None:
        raise KeyError(text * much)

    async def wait(text: str) -> str:
        return text

    with pytest.raises(KeyError, match="oops oops "):
        tracer.trace_run(fail, "oops ", much=2)
    assert await tracer.trace_run_async(wait, "done") == "done"


# Trainer


def test_a_trainer_has_what_it_was_given_under_the_names_of_the_reference() -> None:
    resources: NamedResources = {"prompt": PromptTemplate(template="{q}")}
    hook = Hook()
    store = InMemoryLightningStore()
    trainer = Trainer(
        n_runners=2,
        max_rollouts=7,
        initial_resources=resources,
        tracer={"type": "lightning_core.tracer.DummyTracer"},
        store=store,
        algorithm="mock",
        hooks=[hook],
    )
    assert type(trainer.tracer) is DummyTracer
    assert (trainer.n_runners, trainer.max_rollouts) == (2, 7)
    assert (trainer.initial_resources, trainer.hooks) == (resources, [hook])
    assert (trainer.store, trainer.llm_proxy) == (store, None)
    assert isinstance(trainer.algorithm, FastAlgorithm)
    assert type(trainer.strategy).__name__ == "SharedMemoryExecutionStrategy"
    assert isinstance(trainer.runner, AgentRunnerV2)
    assert type(Trainer(tracer="lightning_core.tracer.dummy.DummyTracer").tracer) is DummyTracer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_given_under_a_deprecated_name_is_found_under_both() -> None:
    trainer = Trainer(
        tracer="dummy", n_workers=2, max_tasks=7, daemon=False, triplet_exporter=_Counting, algorithm="mock"
    )
    assert (trainer.n_workers, trainer.n_runners) == (2, 2)
    assert (trainer.max_tasks, trainer.max_rollouts) == (7, 7)
    assert type(trainer.triplet_exporter) is type(trainer.adapter) is _Counting
    assert trainer.daemon is False
    assert Trainer(tracer="dummy").daemon is True


class _Counting(TraceAdapter[int]):
    def adapt(self, source: Any, /) -> int:
        return len(source)
