"""AgentRunner: what is posted for each form of result, and what happens to tasks that fail."""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from lightning_legacy import AgentLightningClient, AgentRunner, DevTaskLoader
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core import LLM, LitAgent, TraceAdapter, emit_reward, rollout
from lightning_core.emitter.context import emit_span
from lightning_core.errors import ConfigurationError, UnserializableValueError
from lightning_core.execution.event import StopEvent
from lightning_core.tracer import DummyTracer
from lightning_core.types import (
    AttemptedRollout,
    ResourcesUpdate,
    Rollout,
    RolloutMode,
    Span,
    Task,
    Triplet,
)

RESOURCES = {"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small")}
HALVES = ["sync", "async"]


class CallAdapter(TraceAdapter[list[Triplet]]):
    """A triplet for each span named ``call``, with the reward that comes next."""

    def adapt(self, source: Any, /) -> list[Triplet]:
        triplets: list[Triplet] = []
        for span in sorted(source, key=lambda span: getattr(span, "sequence_id", 0)):
            attributes = dict(span.attributes)
            if span.name == "call":
                triplets.append(Triplet(prompt=attributes["prompt"], response="r"))
            elif "reward" in attributes and triplets:
                triplets[-1] = triplets[-1].replace(reward=attributes["reward"])
        return triplets


class Returning(LitAgent[Any]):
    """A sync agent that makes one call, and returns what it is told to."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> Any:
        emit_span("call", {"prompt": str(task)})
        return self.result() if callable(self.result) else self.result


class ReturningAsync(Returning):
    async def training_rollout_async(self, task: Any, resources: Any, rollout: Any) -> Any:
        await asyncio.sleep(0)
        return self.training_rollout(task, resources, rollout)


def runner_of(agent: LitAgent[Any], client: Any = None, **settings: Any) -> AgentRunner:
    client = client or DevTaskLoader(["a"], RESOURCES)
    return AgentRunner(
        agent, client, **{"tracer": DummyTracer(), "triplet_exporter": CallAdapter(), **settings}
    )


def run_all(runner: AgentRunner, half: str) -> int:
    return runner.iter() if half == "sync" else asyncio.run(runner.iter_async())


def posted(result: Any, half: str) -> Rollout:
    """What is posted for a result."""
    loader = DevTaskLoader(["a"], RESOURCES)
    agent = Returning(result) if half == "sync" else ReturningAsync(result)
    assert run_all(runner_of(agent, loader), half) == 1
    (report,) = loader.rollouts
    assert report.task is not None
    assert (report.rollout_id, report.task.input) == (report.task.rollout_id, "a")
    # It is sent as JSON.
    assert Rollout.model_validate_json(report.model_dump_json()).rollout_id == report.rollout_id
    return report


def names(report: Rollout) -> list[str]:
    return [span["name"] for span in report.trace or ()]


# What is posted


@pytest.mark.parametrize("half", HALVES)
def test_nothing_returned_leaves_it_to_the_spans(half: str):
    report = posted(lambda: emit_reward(0.25) and None, half)
    assert report.final_reward == 0.25
    assert report.triplets == [Triplet(prompt="a", response="r", reward=0.25)]
    assert names(report) == ["call", "lightning.reward"]
    assert report.metadata == {}


@pytest.mark.parametrize("half", HALVES)
def test_without_any_reward_there_is_none(half: str):
    report = posted(None, half)
    assert report.final_reward is None
    assert report.triplets == [Triplet(prompt="a", response="r")]
    assert names(report) == ["call"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("result", "reward"), [(0.5, 0.5), (1, 1.0), (True, 1.0), (0.0, 0.0)])
def test_a_number_is_the_final_reward_and_part_of_the_trace(half: str, result: Any, reward: float):
    report = posted(result, half)
    assert report.final_reward == reward
    assert report.triplets == [Triplet(prompt="a", response="r", reward=reward)]
    assert names(report) == ["call", "lightning.reward"]


def test_a_reward_that_is_emitted_and_returned_is_traced_once():
    def both() -> float:
        emit_reward(0.75)
        return 0.75

    assert names(posted(both, "sync")) == ["call", "lightning.reward"]


def test_the_returned_reward_goes_before_those_emitted():
    def two() -> float:
        emit_reward(0.1)
        return 0.9

    report = posted(two, "sync")
    assert report.final_reward == 0.9
    assert names(report) == ["call", "lightning.reward", "lightning.reward"]


@pytest.mark.parametrize("half", HALVES)
def test_triplets_are_posted_as_they_are_with_the_last_reward(half: str):
    rewards = [0.25, 0.5, None]
    triplets = [Triplet(prompt=1, response=2, reward=reward) for reward in rewards]
    report = posted(triplets, half)
    assert report.triplets == triplets
    assert report.final_reward == 0.5
    assert names(report) == ["call"]


def test_the_reward_of_triplets_goes_before_one_that_was_emitted():
    def result() -> list[Triplet]:
        emit_reward(0.25)
        return [Triplet(prompt=1, response=2, reward=0.5)]

    report = posted(result, "sync")
    assert (report.final_reward, names(report)) == (0.5, ["call", "lightning.reward"])


def test_triplets_without_rewards_leave_it_to_the_spans():
    def result() -> list[Triplet]:
        emit_reward(0.25)
        return [Triplet(prompt=1, response=2)]

    report = posted(result, "sync")
    assert (report.final_reward, report.triplets) == (0.25, [Triplet(prompt=1, response=2)])


def own_spans() -> list[ReadableSpan]:
    with DummyTracer().trace_context() as trace:
        emit_span("call", {"prompt": "own"})
        emit_reward(0.5)
    return trace.spans


@pytest.mark.parametrize("half", HALVES)
def test_returned_spans_are_the_trace(half: str):
    report = posted(own_spans, half)
    assert report.final_reward == 0.5
    assert report.triplets == [Triplet(prompt="own", response="r", reward=0.5)]
    assert names(report) == ["call", "lightning.reward"]


def test_returned_spans_of_a_store_are_the_trace():
    def result() -> list[Span]:
        return [Span.from_opentelemetry(span, "ro", "at") for span in own_spans()]

    report = posted(result, "sync")
    assert (report.final_reward, names(report)) == (0.5, ["call", "lightning.reward"])
    assert report.triplets == [Triplet(prompt="own", response="r", reward=0.5)]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "write",
    [
        lambda span: json.loads(span.to_json()),
        lambda span: Span.from_opentelemetry(span, "ro", "at").model_dump(mode="json"),
    ],
    ids=["OpenTelemetry's", "the store's"],
)
def test_dicts_are_the_trace_and_are_read(half: str, write: Callable[[ReadableSpan], dict[str, Any]]):
    dicts = [write(span) for span in own_spans()]
    report = posted(dicts, half)
    assert report.trace == dicts
    assert report.final_reward == 0.5
    assert report.triplets == [Triplet(prompt="own", response="r", reward=0.5)]


def test_dicts_that_are_no_spans_are_posted_beside_what_was_traced():
    def result() -> list[dict[str, Any]]:
        emit_reward(0.25)
        return [{"what": "ever"}]

    report = posted(result, "sync")
    assert report.trace == [{"what": "ever"}]
    assert report.final_reward == 0.25
    assert report.triplets == [Triplet(prompt="a", response="r", reward=0.25)]


@pytest.mark.parametrize("half", HALVES)
def test_a_rollout_is_posted_with_what_it_leaves_open(half: str):
    report = posted(Rollout(rollout_id="local-0", logs=["said"], metadata={"mine": 1}), half)
    assert (report.logs, report.metadata) == (["said"], {"mine": 1})
    assert report.final_reward is None
    assert report.triplets == [Triplet(prompt="a", response="r")]
    assert names(report) == ["call"]


def test_a_whole_rollout_is_posted_as_it_is():
    task = Task(rollout_id="local-0", input="a")
    whole = Rollout(
        rollout_id="local-0",
        task=task,
        final_reward=0.5,
        triplets=[Triplet(prompt=1, response=2, reward=1.0)],
        trace=[{"name": "own"}],
        logs=["said"],
        metadata={"mine": 1},
    )
    assert posted(whole, "sync") == whole


def test_the_reward_of_a_rollout_without_triplets_is_part_of_the_trace():
    report = posted(Rollout(rollout_id="local-0", final_reward=0.5), "sync")
    assert report.final_reward == 0.5
    assert report.triplets == [Triplet(prompt="a", response="r", reward=0.5)]
    assert names(report) == ["call", "lightning.reward"]


def test_a_rollout_of_triplets_has_their_reward():
    report = posted(
        Rollout(rollout_id="local-0", triplets=[Triplet(prompt=1, response=2, reward=0.5)]), "sync"
    )
    assert report.final_reward == 0.5


def test_a_rollout_of_a_trace_has_its_triplets_and_reward():
    trace = [json.loads(span.to_json()) for span in own_spans()]
    report = posted(Rollout(rollout_id="local-0", trace=trace), "sync")
    assert (report.trace, report.final_reward) == (trace, 0.5)
    assert report.triplets == [Triplet(prompt="own", response="r", reward=0.5)]


def test_a_rollout_of_another_id_is_posted_under_the_tasks(caplog: pytest.LogCaptureFixture):
    report = posted(Rollout(rollout_id="another", final_reward=1.0), "sync")
    assert report.final_reward == 1.0
    assert "a Rollout with the id 'another' for task 'local-0'" in caplog.text


def test_an_empty_list_leaves_it_to_the_spans():
    assert posted([], "sync").triplets == [Triplet(prompt="a", response="r")]


# What fails


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", "what is no result"),
        (math.nan, "must be finite"),
        ([1.0, 2.0], "a list of float"),
        ([Triplet(prompt=1, response=2), {"name": "x"}], "a list of Triplet, dict"),
        (Rollout(rollout_id="local-0", final_reward=math.inf), "must be finite"),
    ],
)
def test_what_is_no_result_is_said_and_posted_without_a_reward(
    half: str, result: Any, message: str, caplog: pytest.LogCaptureFixture
):
    report = posted(result, half)
    assert report.final_reward is None
    assert report.triplets is None
    assert names(report) == ["call"]
    assert message in report.metadata["error"]
    assert message in caplog.text


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3)])
def test_an_agent_that_raises_is_posted_without_a_reward_and_the_next_task_goes_on(
    half: str, error: BaseException, caplog: pytest.LogCaptureFixture
):
    seen: list[Any] = []

    class Sync(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> Any:
            emit_reward(0.5)
            seen.append(task)
            if task == "a":
                raise error
            return None

    class Async(LitAgent[Any]):
        async def training_rollout_async(self, task: Any, resources: Any, rollout: Any) -> Any:
            return Sync().training_rollout(task, resources, rollout)

    loader = DevTaskLoader(["a", "b"], RESOURCES)
    runner = runner_of(Sync() if half == "sync" else Async(), loader, worker_id=7)
    assert run_all(runner, half) == 2
    first, second = loader.rollouts
    assert seen == ["a", "b"]
    assert (first.final_reward, first.triplets, names(first)) == (None, None, ["lightning.reward"])
    assert type(error).__name__ in first.metadata["error"]
    assert first.logs is not None
    assert "training_rollout" in first.logs[0]
    assert second.final_reward == 0.5
    assert runner.rollouts == {"failed": 1, "succeeded": 1}
    assert "worker 7: task local-0 failed" in caplog.text


@pytest.mark.parametrize("half", HALVES)
def test_ctrl_c_in_the_agent_ends_the_runner_and_posts_nothing(half: str):
    def press() -> None:
        raise KeyboardInterrupt

    loader = DevTaskLoader(["a", "b"], RESOURCES)
    agent = Returning(press) if half == "sync" else ReturningAsync(press)
    with pytest.raises(KeyboardInterrupt):
        run_all(runner_of(agent, loader), half)
    assert loader.rollouts == []


async def test_a_cancelled_runner_posts_nothing():
    begun = asyncio.Event()

    class Hanging(LitAgent[Any]):
        async def training_rollout_async(self, task: Any, resources: Any, rollout: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

    loader = DevTaskLoader(["a"], RESOURCES)
    running = asyncio.create_task(runner_of(Hanging(), loader).iter_async())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert loader.rollouts == []


async def test_an_agent_that_is_cancelled_by_something_of_its_own_fails():
    class Cancelled(LitAgent[Any]):
        async def training_rollout_async(self, task: Any, resources: Any, rollout: Any) -> None:
            raise asyncio.CancelledError

    loader = DevTaskLoader(["a"], RESOURCES)
    assert await runner_of(Cancelled(), loader).run_async()
    assert "awaited something that was cancelled" in loader.rollouts[0].metadata["error"]


class Fake:
    """A client of somebody's own, with the sync methods alone, whose calls are counted."""

    def __init__(self, *tasks: Task, resources: dict[str | None, Any] | None = None) -> None:
        self.tasks = list(tasks)
        self.resources = resources if resources is not None else {None: RESOURCES}
        self.posted: list[Rollout] = []

    def poll_next_task(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def get_latest_resources(self) -> ResourcesUpdate | None:
        return self._get(None)

    def get_resources_by_id(self, resource_id: str) -> ResourcesUpdate | None:
        return self._get(resource_id)

    def _get(self, key: str | None) -> ResourcesUpdate | None:
        found = self.resources.get(key)
        return None if found is None else ResourcesUpdate(resources_id=key or "latest", resources=found)

    def post_rollout(self, rollout: Rollout) -> dict[str, Any] | None:
        self.posted.append(rollout)
        return None


@pytest.mark.parametrize("half", HALVES)
def test_a_task_gets_its_own_resources_or_else_the_latest(half: str):
    got: list[str] = []

    class Looking(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> None:
            got.append(resources["llm"].model)

    client = Fake(
        Task(rollout_id="1", input="a", resources_id="first"),
        Task(rollout_id="2", input="a"),
        resources={key: {"llm": LLM(endpoint="http://x", model=str(key))} for key in ("first", None)},
    )
    runner = runner_of(Looking(), client)
    assert run_all(runner, half) == 2
    assert got == ["first", "None"]
    # A client of one's own may return nothing.
    assert runner.rollouts == {"succeeded": 2}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("resources_id", "message"),
    [
        (
            None,
            "task '1' asks for the latest resources, and the server has none: call update_resources before",
        ),
        ("lost", "task '1' asks for the resources 'lost', which the server does not have"),
    ],
)
def test_a_task_without_resources_says_so_and_does_not_run(
    half: str, resources_id: str | None, message: str, caplog: pytest.LogCaptureFixture
):
    agent = Returning(lambda: pytest.fail("must not run"))
    client = Fake(Task(rollout_id="1", input="a", resources_id=resources_id), resources={})
    assert run_all(runner_of(agent, client), half) == 1
    (report,) = client.posted
    assert report.metadata["error"].startswith(message)
    assert message in caplog.text
    assert report.final_reward is None


class Refusing(AgentLightningClient):
    """A client whose server does not take reports, in different ways."""

    def __init__(self, *answers: Any) -> None:
        super().__init__("http://127.0.0.1:1")
        self.tasks = [Task(rollout_id=str(number), input="a") for number in range(len(answers))]
        self.answers = list(answers)
        self.posts: list[Rollout] = []

    def poll_next_task(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def get_latest_resources(self) -> ResourcesUpdate | None:
        return ResourcesUpdate(resources_id="1", resources=RESOURCES)

    def post_rollout(self, rollout: Rollout) -> dict[str, Any] | None:
        self.posts.append(rollout)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("half", HALVES)
def test_a_report_that_the_server_does_not_take_is_not_counted(half: str, caplog: pytest.LogCaptureFixture):
    client = Refusing(None, {"status": "error"}, ConnectionError("away"), {"status": "success"})
    runner = runner_of(Returning(1.0), client)
    counted: list[dict[Any, int]] = []
    runner.on_posted = lambda: counted.append(dict(runner.rollouts))
    assert run_all(runner, half) == 4
    assert counted == [{"succeeded": 1}]
    assert "the rollout of task 2 could not be posted" in caplog.text
    assert "ConnectionError: away" in caplog.text


def test_a_result_that_json_cannot_hold_is_posted_as_a_failure(caplog: pytest.LogCaptureFixture):
    client = Refusing(UnserializableValueError("a triplet holds a lock"), {"status": "success"})
    client.tasks = client.tasks[:1]
    runner = runner_of(Returning([Triplet(prompt=threading.Lock(), response=1)]), client)
    assert runner.iter() == 1
    assert [report.metadata.get("error") for report in client.posts] == [None, "a triplet holds a lock"]
    assert client.posts[1].triplets is None
    assert runner.rollouts == {"failed": 1}
    assert "its result cannot be sent: a triplet holds a lock" in caplog.text


@pytest.mark.parametrize("half", HALVES)
def test_an_adapter_that_fails_costs_neither_reward_nor_trace(half: str, caplog: pytest.LogCaptureFixture):
    class Broken(CallAdapter):
        def adapt(self, source: Any, /) -> list[Triplet]:
            raise ZeroDivisionError("no credit")

    class Strange(CallAdapter):
        def adapt(self, source: Any, /) -> Any:
            return ["text"]

    for adapter, said in (
        (Broken(), "no credit"),
        (Strange(), "Strange makes a str, and v0.1 posts triplets"),
    ):
        loader = DevTaskLoader(["a"], RESOURCES)
        agent = Returning(0.5) if half == "sync" else ReturningAsync(0.5)
        assert run_all(runner_of(agent, loader, triplet_exporter=adapter), half) == 1
        (report,) = loader.rollouts
        assert (report.final_reward, report.triplets) == (0.5, None)
        assert names(report) == ["call", "lightning.reward"]
        assert said in report.metadata["adapter_error"]
        assert said in caplog.text


# How it runs


@pytest.mark.parametrize("half", HALVES)
def test_run_does_one_task_and_says_whether_there_was_one(half: str):
    loader = DevTaskLoader(["a", "b"], RESOURCES)
    agent = Returning(1.0) if half == "sync" else ReturningAsync(1.0)
    runner = runner_of(agent, loader)

    def run() -> bool:
        return runner.run() if half == "sync" else asyncio.run(runner.run_async())

    assert [run(), len(loader.rollouts), run(), run()] == [True, 1, True, False]
    assert len(loader.rollouts) == 2


@pytest.mark.parametrize("half", HALVES)
def test_max_tasks_ends_it(half: str):
    loader = DevTaskLoader(list("abcd"), RESOURCES)
    agent = Returning(1.0) if half == "sync" else ReturningAsync(1.0)
    assert run_all(runner_of(agent, loader, max_tasks=3), half) == 3
    assert len(loader.rollouts) == 3
    assert loader.poll_next_task() is not None


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match="max_tasks must not be negative, but is -1"):
        runner_of(Returning(1.0), max_tasks=-1)
    with pytest.raises(ConfigurationError, match="AgentRunner needs an agent, not function"):
        runner_of(lambda task: 1.0)  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="unknown tracer 'dumy'"):
        runner_of(Returning(1.0), tracer="dumy")


def test_an_async_agent_is_refused_by_the_sync_half_before_it_takes_a_task():
    loader = DevTaskLoader(["a"], RESOURCES)
    runner = runner_of(ReturningAsync(1.0), loader)
    with pytest.raises(ConfigurationError, match=r"ReturningAsync is async: await iter_async\(\)"):
        runner.iter()
    with pytest.raises(ConfigurationError, match=r"await run_async\(\)"):
        runner.run()
    assert loader.poll_next_task() is not None


@pytest.mark.parametrize("half", HALVES)
def test_a_sync_agent_may_use_a_loop_of_its_own_and_finds_its_runner(half: str):
    thread = threading.current_thread()
    variable = contextvars.ContextVar("variable", default="")
    seen: list[Any] = []

    class Looping(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            seen.append((self.runner is runner, self.tracer is runner.tracer, variable.get()))
            seen.append((threading.current_thread() is thread, threading.current_thread().daemon))
            return asyncio.run(self.think())

        async def think(self) -> float:
            return 0.5

    loader = DevTaskLoader(["a"], RESOURCES)
    runner = runner_of(Looping(), loader)
    variable.set("here")
    assert run_all(runner, half) == 1
    assert loader.rollouts[0].final_reward == 0.5
    # The async half keeps its loop free, and an agent that is stuck must not keep the process alive.
    assert seen == [(True, True, "here"), (True, False) if half == "sync" else (False, True)]


async def test_the_sync_half_works_inside_of_a_running_loop():
    loader = DevTaskLoader(["a"], RESOURCES)
    assert runner_of(Returning(1.0), loader).iter() == 1
    assert loader.rollouts[0].final_reward == 1.0


@pytest.mark.parametrize("mode", ["train", "val", "test", None])
@pytest.mark.parametrize("half", HALVES)
def test_val_and_test_tasks_go_to_the_validation_method(half: str, mode: RolloutMode | None):
    class Both(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            return 1.0

        def validation_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            return 2.0

    class BothAsync(LitAgent[Any]):
        async def training_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            return 1.0

        async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            return 2.0

    loader = DevTaskLoader([Task(rollout_id="1", input="a", mode=mode)], RESOURCES)
    run_all(runner_of(Both() if half == "sync" else BothAsync(), loader), half)
    assert loader.rollouts[0].final_reward == (2.0 if mode in ("val", "test") else 1.0)


@pytest.mark.parametrize("half", HALVES)
def test_agents_of_todays_form_get_an_attempted_rollout(half: str):
    seen: list[Any] = []

    @rollout
    def agent(task: Any, llm: LLM, rollout: AttemptedRollout) -> float:
        seen.append((task, llm.model, rollout))
        return 1.0

    task = Task(
        rollout_id="ro",
        input={"q": 1},
        mode="val",
        resources_id="local",
        create_time=5.0,
        last_claim_time=6.0,
        num_claims=2,
        metadata={"m": 1},
    )
    run_all(runner_of(agent, DevTaskLoader([task], RESOURCES)), half)
    ((given, model, live),) = seen
    assert (given, model) == ({"q": 1}, "small")
    assert (live.rollout_id, live.input, live.mode, live.resources_id) == ("ro", {"q": 1}, "val", "local")
    assert (live.start_time, live.attempt.start_time, live.attempt.sequence_id) == (5.0, 6.0, 2)
    assert (live.status, live.metadata) == ("running", {"m": 1})


class OldSync(LitAgent[Any]):
    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        emit_reward(0.5)
        return [Triplet(prompt=task, response=(rollout_id, resources["main_llm"].model))]


class OldAsync(LitAgent[Any]):
    async def training_rollout_async(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        emit_reward(0.5)
        return [Triplet(prompt=task, response=(rollout_id, resources["main_llm"].model))]


class OldMain(OldSync):
    def rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return self.training_rollout(task, rollout_id, resources)


class OldMainAsync(OldSync):
    async def rollout_async(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return self.training_rollout(task, rollout_id, resources)


@pytest.mark.parametrize(
    ("half", "agent"),
    [
        ("sync", OldSync()),
        ("sync", OldMain()),
        ("async", OldSync()),
        ("async", OldMain()),
        ("async", OldAsync()),
        ("async", OldMainAsync()),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
def test_agents_of_the_v0_1_form_run(half: str, agent: LitAgent[Any]):
    loader = DevTaskLoader(["a"], RESOURCES)
    assert run_all(runner_of(agent, loader), half) == 1
    (report,) = loader.rollouts
    assert report.triplets == [Triplet(prompt="a", response=("local-0", "small"))]
    assert report.final_reward == 0.5


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_agents_deprecated_hooks_are_called_with_task_and_rollout(half: str, fails: bool):
    calls: list[Any] = []

    class Hooked(LitAgent[Any]):
        def on_rollout_start(self, task: Task, runner: Any, tracer: Any) -> None:
            calls.append(("start", task.input, runner, tracer))

        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            calls.append("rollout")
            if fails:
                raise RuntimeError("broken")
            return 0.5

        def on_rollout_end(self, task: Task, rollout: Any, runner: Any, tracer: Any) -> None:
            calls.append(("end", task.input, rollout.final_reward, len(loader.rollouts), runner, tracer))

    loader = DevTaskLoader(["a"], RESOURCES)
    runner = runner_of(Hooked(), loader)
    with pytest.warns(DeprecationWarning, match="Hooked.on_rollout_"):
        run_all(runner, half)
    assert calls == [
        ("start", "a", runner, runner.tracer),
        "rollout",
        ("end", "a", None if fails else 0.5, 0, runner, runner.tracer),
    ]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.filterwarnings("ignore:.*is deprecated; write a Hook:DeprecationWarning")
def test_a_deprecated_hook_that_fails_is_logged_and_changes_nothing(
    half: str, caplog: pytest.LogCaptureFixture
):
    class Failing(LitAgent[Any]):
        def on_rollout_start(self, task: Task, runner: Any, tracer: Any) -> None:
            raise RuntimeError("at the start")

        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            return 0.5

        def on_rollout_end(self, task: Task, rollout: Any, runner: Any, tracer: Any) -> None:
            raise RuntimeError("at the end")

    loader = DevTaskLoader(["a"], RESOURCES)
    run_all(runner_of(Failing(), loader), half)
    assert loader.rollouts[0].final_reward == 0.5
    assert "at the start" in caplog.text
    assert "at the end" in caplog.text


def test_an_event_ends_the_sync_half_after_the_task_in_hand():
    stop = threading.Event()
    loader = DevTaskLoader(["a", "b"], RESOURCES)
    assert runner_of(Returning(stop.set), loader).iter(event=stop) == 1
    assert len(loader.rollouts) == 1


class Waiting(Fake):
    """A client that waits for a task for ever, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = asyncio.Event()
        self.gave_up = False

    async def poll_next_task_async(self) -> Task | None:
        self.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.gave_up = True
            raise
        return None

    def poll_next_task(self) -> Task | None:
        raise AssertionError("the async form goes first")


@pytest.mark.parametrize("make", [StopEvent, threading.Event])
async def test_an_event_ends_the_wait_for_a_task(make: Callable[[], Any]):
    client, stop = Waiting(), make()
    running = asyncio.create_task(runner_of(Returning(1.0), client).iter_async(event=stop))
    await client.waits.wait()
    stop.set()
    assert await running == 0
    assert client.gave_up


async def test_an_event_that_is_set_already_asks_for_no_task():
    client, stop = Waiting(), StopEvent()
    stop.set()
    assert await runner_of(Returning(1.0), client).iter_async(event=stop) == 0
    assert not client.waits.is_set()


async def test_an_event_ends_the_async_half_after_the_task_in_hand():
    stop = StopEvent()
    loader = DevTaskLoader(["a", "b"], RESOURCES)
    assert await runner_of(ReturningAsync(stop.set), loader).iter_async(event=stop) == 1
    assert len(loader.rollouts) == 1


async def test_a_subclass_that_overrides_a_sync_method_alone_is_heard_by_the_async_half():
    class Own(DevTaskLoader):
        def post_rollout(self, rollout: Rollout) -> dict[str, Any] | None:
            thread.append(threading.current_thread())
            return super().post_rollout(rollout)

    thread: list[threading.Thread] = []
    loader = Own(["a"], RESOURCES)
    assert await runner_of(ReturningAsync(1.0), loader).iter_async() == 1
    assert len(loader.rollouts) == 1
    # It may block, so it is not called on the loop.
    assert thread != [threading.current_thread()]


async def test_something_asynchronous_in_the_sync_half_says_what_to_use():
    class Hooked(LitAgent[Any]):
        async def on_rollout_start(self, task: Task, runner: Any, tracer: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(0)

        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            return 1.0

    with (
        pytest.warns(DeprecationWarning, match="on_rollout_start"),
        pytest.raises(RuntimeError, match=r"use run_async\(\) or iter_async\(\)"),
    ):
        runner_of(Hooked()).run()


class Counting(DummyTracer):
    """A tracer that counts its life."""

    def __init__(self) -> None:
        super().__init__()
        self.life: list[Any] = []

    def init(self, *args: Any, **kwargs: Any) -> None:
        self.life.append("init")

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self.life.append(("worker", worker_id))

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        self.life.append(("end of worker", worker_id))

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.life.append("teardown")


@pytest.mark.parametrize("half", HALVES)
def test_the_tracer_is_set_up_and_torn_down_once_also_after_an_error(half: str):
    class Gone(Fake):
        def poll_next_task(self) -> Task | None:
            raise ConnectionError("away")

    tracer = Counting()
    with pytest.raises(ConnectionError):
        run_all(runner_of(Returning(1.0), Gone(), tracer=tracer, worker_id=3), half)
    assert tracer.life == ["init", ("worker", 3), ("end of worker", 3), "teardown"]


def test_a_runner_that_was_set_up_by_hand_stays_so():
    tracer = Counting()
    runner = runner_of(Returning(1.0), DevTaskLoader(["a", "b"], RESOURCES), tracer=tracer)
    runner.init()
    runner.init_worker(4)
    assert runner.run()
    assert runner.run()
    runner.teardown_worker()
    runner.teardown()
    assert runner.worker_id == 4
    assert tracer.life == ["init", ("worker", 4), ("end of worker", 4), "teardown"]


def test_runners_that_share_an_agent_are_told_apart_also_in_other_threads():
    seen: list[Any] = []

    class Looking(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> None:
            seen.append(self.runner)

    agent = Looking()
    runners = [runner_of(agent), runner_of(agent)]
    for runner in runners:
        runner.init_worker()
        thread = threading.Thread(target=runner.run)
        thread.start()
        thread.join()
    assert seen == runners


def test_a_task_that_does_not_begin_calls_no_hook():
    calls: list[Any] = []

    class Hooked(LitAgent[Any]):
        def on_rollout_end(self, task: Task, rollout: Any, runner: Any, tracer: Any) -> None:
            calls.append(rollout)

    client = Fake(Task(rollout_id="1", input="a"), resources={})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert runner_of(Hooked(), client).iter() == 1
    assert "has none" in client.posted[0].metadata["error"]
    assert calls == []


# trained_agents


class MatchingAdapter(CallAdapter):
    """An adapter with settings, whose calls are matched by ``agent_match``."""

    def __init__(self, agent_match: str | None = None, strict: bool = False) -> None:
        self.agent_match = agent_match
        self.strict = strict


def trained(name: str | None) -> LitAgent[Any]:
    agent = Returning(None)
    agent.trained_agents = name
    return agent


def test_trained_agents_become_the_adapters_agent_match():
    given = MatchingAdapter(strict=True)
    adapter: Any = runner_of(trained("planner"), triplet_exporter=given).triplet_exporter
    assert (adapter.agent_match, adapter.strict) == ("planner", True)
    # The user's own is left as it is.
    assert given.agent_match is None


def test_without_trained_agents_the_adapter_stays():
    given = MatchingAdapter("writer")
    assert runner_of(trained(None), triplet_exporter=given).triplet_exporter is given


def test_the_adapters_own_agent_match_goes_before_trained_agents(caplog: pytest.LogCaptureFixture):
    given = MatchingAdapter("writer")
    assert runner_of(trained("planner"), triplet_exporter=given).triplet_exporter is given
    assert "trained_agents='planner' has no effect" in caplog.text


def test_an_agent_match_that_is_the_same_is_left_alone(caplog: pytest.LogCaptureFixture):
    given = MatchingAdapter("planner")
    assert runner_of(trained("planner"), triplet_exporter=given).triplet_exporter is given
    assert caplog.text == ""


def test_an_adapter_that_cannot_tell_agents_apart_is_refused():
    with pytest.raises(ConfigurationError, match="needs an adapter with the setting agent_match"):
        runner_of(trained("planner"), triplet_exporter=CallAdapter())


def test_an_adapter_that_hides_its_settings_is_refused():
    class Hiding(MatchingAdapter):
        def __init__(self, agent_match: str | None = None, secret: int = 0) -> None:
            super().__init__(agent_match)

    with pytest.raises(ConfigurationError, match="does not tell its setting 'secret'; give it agent_match"):
        runner_of(trained("planner"), triplet_exporter=Hiding())


def emit_agent_calls() -> None:
    for agent in ("planner", "writer"):
        request = {"model": "m", "messages": [{"role": "user", "content": agent}]}
        answer = {
            "id": agent,
            "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
            ],
        }
        emit_span(
            "ChatCompletion",
            {
                "openinference.span.kind": "LLM",
                "input.value": json.dumps(request),
                "output.value": json.dumps(answer),
                "gen_ai.agent.name": agent,
            },
        )


@pytest.mark.parametrize(("name", "agents"), [(None, ["planner", "writer"]), ("^plan", ["planner"])])
@pytest.mark.parametrize("spec", [None, "triplet", {"type": "triplet", "repair_hierarchy": False}])
def test_the_triplet_adapter_keeps_to_the_trained_agents(name: str | None, agents: list[str], spec: Any):
    pytest.importorskip("lightning_adapter_triplet", reason="lightning-adapter-triplet is not installed")
    loader = DevTaskLoader(["a"], RESOURCES)
    agent = Returning(emit_agent_calls)
    agent.trained_agents = name
    runner = runner_of(agent, loader, triplet_exporter=spec)
    assert runner.iter() == 1
    triplets = loader.rollouts[0].triplets
    assert triplets is not None
    assert [triplet.metadata["agent_name"] for triplet in triplets] == agents
    assert getattr(runner.triplet_exporter, "repair_hierarchy") is (not isinstance(spec, dict))  # noqa: B009
