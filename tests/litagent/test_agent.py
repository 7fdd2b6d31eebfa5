"""LitAgent: which method runs a task, and how it finds its trainer and its worker's runner."""

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lightning_core import LLM, AgentRunnerV2, InMemoryLightningStore, find_final_reward
from lightning_core.errors import ConfigurationError, LightningError
from lightning_core.litagent import (
    LitAgent,
    call_deprecated_end,
    call_deprecated_start,
    call_rollout,
    is_v0_1_rollout_api,
)
from lightning_core.tracer import DummyTracer
from lightning_core.types import RolloutMode, RolloutV2, Task


class Stub:
    """Stands for a runner, a trainer or a tracer."""

    def __init__(self, tracer: Any = None) -> None:
        self.tracer = tracer


def make_rollout(mode: RolloutMode | None = None) -> RolloutV2:
    return RolloutV2(rollout_id="ro-1", input="task", start_time=0, mode=mode)


class SyncAgent(LitAgent[Any]):
    def training_rollout(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 1.0


class SyncBoth(SyncAgent):
    def validation_rollout(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 2.0


class AsyncAgent(LitAgent[Any]):
    async def training_rollout_async(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 1.0


class AsyncBoth(AsyncAgent):
    async def validation_rollout_async(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 2.0


class MixedAgent(SyncBoth):
    """Trains async and validates sync."""

    async def training_rollout_async(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 1.5


class OneMethod(LitAgent[Any]):
    def rollout(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 3.0


class OneAsyncMethod(LitAgent[Any]):
    async def rollout_async(self, task: Any, resources: Any, rollout: RolloutV2) -> float:
        return 3.0


MODES = [None, "train", "val", "test"]


@pytest.mark.parametrize("mode", MODES)
async def test_the_mode_chooses_between_training_and_validation(mode: RolloutMode | None):
    rollout = make_rollout(mode)
    expected = 2.0 if mode in ("val", "test") else 1.0
    assert SyncBoth().rollout("t", {}, rollout) == expected
    assert await SyncBoth().rollout_async("t", {}, rollout) == expected
    assert await AsyncBoth().rollout_async("t", {}, rollout) == expected
    assert await MixedAgent().rollout_async("t", {}, rollout) == (2.0 if expected == 2.0 else 1.5)


@pytest.mark.parametrize("mode", MODES)
async def test_validation_is_training_unless_said_otherwise(mode: RolloutMode | None):
    rollout = make_rollout(mode)
    assert SyncAgent().rollout("t", {}, rollout) == 1.0
    assert await SyncAgent().rollout_async("t", {}, rollout) == 1.0
    assert await AsyncAgent().rollout_async("t", {}, rollout) == 1.0


@pytest.mark.parametrize("mode", MODES)
async def test_one_method_may_serve_every_mode(mode: RolloutMode | None):
    assert OneMethod().rollout("t", {}, make_rollout(mode)) == 3.0
    assert await OneMethod().rollout_async("t", {}, make_rollout(mode)) == 3.0
    assert await OneAsyncMethod().rollout_async("t", {}, make_rollout(mode)) == 3.0


@pytest.mark.parametrize(
    ("agent", "is_async"),
    [
        (SyncAgent(), False),
        (SyncBoth(), False),
        (OneMethod(), False),
        (LitAgent[Any](), False),
        (AsyncAgent(), True),
        (AsyncBoth(), True),
        (MixedAgent(), True),
        (OneAsyncMethod(), True),
    ],
)
def test_an_agent_is_async_when_it_implements_an_async_method(agent: LitAgent[Any], is_async: bool):
    assert agent.is_async() is is_async


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_that_implements_nothing_says_so(mode: RolloutMode | None):
    class Empty(LitAgent[Any]):
        pass

    with pytest.raises(NotImplementedError, match="Empty implements no rollout method; override rollout"):
        Empty().rollout("t", {}, make_rollout(mode))
    with pytest.raises(NotImplementedError, match="Empty implements no rollout method"):
        await Empty().rollout_async("t", {}, make_rollout(mode))


def test_an_async_agent_that_is_called_as_a_sync_one_says_what_to_do():
    with pytest.raises(NotImplementedError, match="AsyncAgent is async: await rollout_async"):
        AsyncAgent().rollout("t", {}, make_rollout())


async def test_a_sync_agent_does_not_block_the_loop_and_keeps_the_context():
    variable = contextvars.ContextVar("variable", default="")
    seen: list[tuple[str, bool]] = []

    class Observer(LitAgent[Any]):
        def rollout(self, task: Any, resources: Any, rollout: RolloutV2) -> None:
            seen.append((variable.get(), threading.current_thread() is threading.main_thread()))

    variable.set("here")
    await Observer().rollout_async("t", {}, make_rollout())
    assert seen == [("here", False)]


class Old(LitAgent[Any]):
    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


class OldAsync(LitAgent[Any]):
    async def training_rollout_async(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


class OldValidation(SyncAgent):
    def validation_rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


class OldMain(LitAgent[Any]):
    def rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


class OldMainAsync(LitAgent[Any]):
    async def rollout_async(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


class HalfWay(LitAgent[Any]):
    def training_rollout(self, task: Any, resources: Any, rollout_id: str) -> Any:  # type: ignore[override]
        return [task, rollout_id, resources]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("agent", [Old(), OldAsync(), OldValidation(), OldMain(), OldMainAsync(), HalfWay()])
@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
async def test_methods_of_the_v0_1_form_get_the_rollout_id(agent: LitAgent[Any], mode: RolloutMode | None):
    given = ["t", "ro-1", {"a": 1}]
    rollout = make_rollout(mode)
    trains = isinstance(agent, OldValidation) and mode not in ("val", "test")
    expected = SyncAgent().rollout("t", {}, rollout) if trains else given
    resources: Any = {"a": 1}
    assert await call_rollout(agent.rollout_async, "t", resources, rollout) == expected
    if not agent.is_async():
        assert call_rollout(agent.rollout, "t", resources, rollout) == expected


class OldReward(LitAgent[Any]):
    seen: Any = None

    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:  # type: ignore[override]
        self.seen = (task, rollout_id, resources["llm"].model)
        return 0.5


class OldRewardAsync(LitAgent[Any]):
    seen: Any = None

    async def rollout_async(self, task: Any, rollout_id: str, resources: Any) -> float:  # type: ignore[override]
        self.seen = (task, rollout_id, resources["llm"].model)
        return 0.5


class OldMainReward(OldReward):
    def rollout(self, task: Any, rollout_id: str, resources: Any) -> float:  # type: ignore[override]
        return self.training_rollout(task, rollout_id, resources)


@pytest.mark.parametrize("agent", [OldReward(), OldRewardAsync(), OldMainReward()])
@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
async def test_agents_of_the_v0_1_form_run_with_the_runner_of_today(agent: Any):
    store, runner = InMemoryLightningStore(), AgentRunnerV2[Any](DummyTracer())
    with runner.run_context(agent=agent, store=store):
        done = await runner.step("t", resources={"llm": LLM(endpoint="http://localhost", model="small")})
    assert done.status == "succeeded"
    assert agent.seen == ("t", done.rollout_id, "small")
    assert find_final_reward(await store.query_spans(done.rollout_id)) == 0.5


def test_the_v0_1_form_is_told_by_its_rollout_id():
    assert is_v0_1_rollout_api(Old().training_rollout)
    assert is_v0_1_rollout_api(HalfWay.training_rollout)
    assert not is_v0_1_rollout_api(SyncAgent().training_rollout)


def test_a_plain_function_of_the_v0_1_form_can_be_called_too():
    def method(task: Any, rollout_id: str, resources: Any) -> Any:
        return [task, rollout_id, resources]

    with pytest.warns(DeprecationWarning, match="method has the v0.1 form"):
        assert call_rollout(method, "t", {}, make_rollout()) == ["t", "ro-1", {}]


def test_a_method_of_the_v0_1_form_warns_once_where_it_is_written():
    class Older(LitAgent[Any]):
        def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
            return rollout_id

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert Older().rollout("t", {}, make_rollout()) == "ro-1"
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert "Older.training_rollout has the v0.1 form" in str(warning.message)
    assert warning.filename == __file__
    assert warning.lineno == Older.training_rollout.__code__.co_firstlineno


def test_the_trained_agents_keyword_is_deprecated():
    with pytest.warns(DeprecationWarning, match="trained_agents") as caught:
        agent: LitAgent[Any] = LitAgent(trained_agents="main")
    assert caught[0].filename == __file__
    assert agent.trained_agents == "main"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SyncAgent().trained_agents is None


# Trainer and runner


def test_trainer_and_runner_are_missing_with_a_clear_error():
    agent = SyncAgent()
    for get in (agent.get_trainer, agent.get_runner, agent.get_tracer):
        with pytest.raises(ConfigurationError, match="agent SyncAgent has no"):
            get()
    assert issubclass(ConfigurationError, LightningError)
    assert issubclass(ConfigurationError, ValueError)


def test_an_agent_that_forgets_super_init_still_works():
    class Careless(SyncAgent):
        def __init__(self) -> None:
            self.own = 1

    agent, runner = Careless(), Stub()
    agent.set_runner(runner)
    agent.set_trainer(runner)
    assert agent.runner is runner
    assert agent.trainer is runner


def test_references_are_weak():
    agent, runner, trainer = SyncAgent(), Stub("tracer"), Stub()
    agent.set_runner(runner)
    agent.set_trainer(trainer)
    assert agent.get_runner() is agent.runner is runner
    assert agent.get_tracer() == agent.tracer == "tracer"
    assert agent.get_trainer() is trainer
    del runner, trainer
    gc.collect()
    with pytest.raises(ConfigurationError, match="is gone"):
        agent.get_runner()
    with pytest.raises(ConfigurationError, match="is gone"):
        agent.get_trainer()


def test_a_runner_without_tracer_is_reported():
    agent, runner = SyncAgent(), Stub()
    agent.set_runner(runner)
    with pytest.raises(ConfigurationError, match="Stub, has no tracer"):
        agent.get_tracer()


def test_the_last_runner_set_in_a_worker_counts():
    agent, first, second = SyncAgent(), Stub(), Stub()
    agent.set_runner(first)
    agent.set_runner(second)
    assert agent.get_runner() is second


def test_workers_that_share_an_agent_each_see_their_own_runner():
    agent, barrier = SyncAgent(), threading.Barrier(2)
    seen: dict[int, tuple[Any, ...]] = {}

    def work(number: int) -> None:
        runner = Stub()

        async def main() -> tuple[Any, ...]:
            barrier.wait(10)  # both runners are set from here on
            in_task = await asyncio.create_task(asyncio.sleep(0, None)) or agent.get_runner()
            in_thread = await asyncio.to_thread(agent.get_runner)
            barrier.wait(10)
            return runner, agent.get_runner(), in_task, in_thread

        agent.set_runner(runner)
        seen[number] = asyncio.run(main())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for runner, *found in seen.values():
        assert all(each is runner for each in found)
    assert seen[0][0] is not seen[1][0]


def test_a_foreign_thread_gets_the_only_runner_and_no_guess_among_several():
    agent, runner = SyncAgent(), Stub()
    agent.set_runner(runner)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(agent.get_runner).result(10) is runner
        other = Stub()
        contextvars.Context().run(agent.set_runner, other)
        with pytest.raises(ConfigurationError, match="2 runners in this process"):
            pool.submit(agent.get_runner).result(10)
        assert agent.get_runner() is runner
        del other
        gc.collect()
        assert pool.submit(agent.get_runner).result(10) is runner


def test_two_agents_in_one_context_do_not_mix():
    one, two, runner = SyncAgent(), SyncAgent(), Stub()
    one.set_runner(runner)
    with pytest.raises(ConfigurationError, match="has no runner"):
        two.get_runner()


def test_an_agent_travels_without_its_runner_and_trainer():
    agent, runner = SyncAgent(), Stub()
    agent.note = "kept"
    agent.set_runner(runner)
    agent.set_trainer(runner)
    for other in (pickle.loads(pickle.dumps(agent)), copy.deepcopy(agent)):
        assert other.note == "kept"
        with pytest.raises(ConfigurationError, match="has no runner"):
            other.get_runner()
        with pytest.raises(ConfigurationError, match="has no trainer"):
            other.get_trainer()


# Deprecated hooks


async def test_deprecated_hooks_are_called_when_overridden_and_warn_once():
    calls: list[Any] = []

    class Old(SyncAgent):
        def on_rollout_start(self, task: Task, runner: Any, tracer: Any) -> None:
            calls.append((task, runner, tracer))

        def on_rollout_end(self, task: Task, rollout: RolloutV2, runner: Any, tracer: Any) -> None:
            calls.append((task, rollout, runner, tracer))

    rollout, runner, tracer = make_rollout("val"), Stub(), Stub()
    with pytest.warns(DeprecationWarning, match="Old.on_rollout_start is deprecated"):
        await call_deprecated_start(Old(), rollout, runner, tracer)
    with pytest.warns(DeprecationWarning, match="Old.on_rollout_end is deprecated"):
        await call_deprecated_end(Old(), rollout, runner, tracer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await call_deprecated_start(Old(), rollout, runner, tracer)
    task = Task(rollout_id="ro-1", input="task", mode="val", create_time=0)
    assert calls == [(task, runner, tracer), (task, rollout, runner, tracer), (task, runner, tracer)]


async def test_agents_without_deprecated_hooks_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await call_deprecated_start(SyncAgent(), make_rollout(), Stub(), Stub())
        await call_deprecated_end(SyncAgent(), make_rollout(), Stub(), Stub())
    assert SyncAgent().on_rollout_start(None, None, None) is None
    assert SyncAgent().on_rollout_end(None, None, None, None) is None
