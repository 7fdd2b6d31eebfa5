"""The v0.1 path of Trainer.fit: what may be given as data, who does the work, and how it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from lightning_legacy import AgentLightningClient, AgentLightningServer, DevTaskLoader, crew

from lightning_core import (
    LLM,
    BaseAlgorithm,
    FastAlgorithm,
    Hook,
    LitAgent,
    TraceAdapter,
    Trainer,
    TrainingResult,
    rollout,
)
from lightning_core.bridge import run_sync
from lightning_core.emitter.context import emit_span
from lightning_core.errors import ConfigurationError, DatasetError, ExecutionError
from lightning_core.tracer import DummyTracer
from lightning_core.types import PromptTemplate, Rollout

RESOURCES = {"llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small")}
PATIENCE = 60.0


@pytest.fixture
def server() -> Iterator[AgentLightningServer]:
    """A server that runs, with resources."""
    server = AgentLightningServer(port=0)
    run_sync(server.start())
    run_sync(server.update_resources(RESOURCES))
    yield server
    run_sync(server.close())


def queue(server: AgentLightningServer, *tasks: Any, mode: Any = "train") -> list[str]:
    return [run_sync(server.queue_task(task, mode)) for task in tasks]


def rewards(server: AgentLightningServer, rollout_ids: list[str]) -> list[float | None]:
    found = [run_sync(server.poll_completed_rollout(each, PATIENCE)) for each in rollout_ids]
    return [report.final_reward if report is not None else None for report in found]


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", **settings})


@rollout
def double(task: float, llm: LLM) -> float:
    return 2 * task


@rollout
async def double_async(task: float, llm: LLM) -> float:
    await asyncio.sleep(0)
    return 2 * task


class Old(LitAgent[Any]):
    """An agent as v0.1 had them, which tells where it runs."""

    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> Rollout:  # type: ignore[override]
        process = multiprocessing.current_process()
        where = {"pid": os.getpid(), "daemon": process.daemon, "thread": threading.current_thread().name}
        return Rollout(rollout_id=rollout_id, final_reward=2.0 * task, metadata=where)


# Who does the work


@pytest.mark.parametrize("agent", [double, double_async])
def test_one_worker_is_a_thread_of_this_process(server: AgentLightningServer, agent: Any):
    tasks = queue(server, 1.0, 2.0, 3.0)
    train = trainer(max_rollouts=3)
    result = train.fit(agent, server.endpoint)
    assert rewards(server, tasks) == [2.0, 4.0, 6.0]
    assert isinstance(result, TrainingResult)
    assert (result.status, result.rollouts, result.store) == ("succeeded", {"succeeded": 3}, server.endpoint)
    assert result.start_time <= result.end_time
    assert (result.settings["tracer"], result.settings["client"]) == ("dummy", "AgentLightningClient")
    assert isinstance(train.client(), AgentLightningClient)
    assert train.client().endpoint == server.endpoint
    assert TrainingResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
def test_several_workers_are_processes_with_max_tasks_each(server: AgentLightningServer):
    """Everything by the names of v0.1."""
    tasks = queue(server, *range(6))
    with pytest.warns(DeprecationWarning, match="Trainer's") as caught:
        train = trainer(n_workers=2, max_tasks=3, daemon=True)
    assert sorted(str(warning.message).split()[1] for warning in caught) == [
        "daemon",
        "max_tasks",
        "n_workers",
    ]
    result = train.fit(Old(), server.endpoint)
    found = [run_sync(server.poll_completed_rollout(each, PATIENCE)) for each in tasks]
    reports = [report for report in found if report is not None]
    assert sorted(report.final_reward for report in reports) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]  # type: ignore[type-var]
    pids = [report.metadata["pid"] for report in reports]
    assert sorted(pids.count(pid) for pid in set(pids)) == [3, 3]
    assert os.getpid() not in pids
    assert {report.metadata["daemon"] for report in reports} == {True}
    assert result.rollouts == {"succeeded": 6}
    assert result.settings["n_runners"] == 2


@pytest.mark.filterwarnings("ignore:Trainer's daemon:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
def test_workers_that_are_no_daemons(server: AgentLightningServer):
    tasks = queue(server, 1, 2)
    trainer(n_runners=2, max_rollouts=1, daemon=False).fit(Old(), AgentLightningClient(server.endpoint))
    found = [run_sync(server.poll_completed_rollout(each, PATIENCE)) for each in tasks]
    assert [report.metadata["daemon"] for report in found if report is not None] == [False, False]


@pytest.mark.filterwarnings("ignore:.*has the v0.1 form:DeprecationWarning")
def test_the_tasks_of_a_loader_are_done_once_by_threads_of_this_process():
    loader = DevTaskLoader(list(range(20)), RESOURCES)
    train = trainer(n_runners=3)
    result = train.fit(Old(), loader)
    assert sorted(report.final_reward or 0.0 for report in loader.rollouts) == [
        2.0 * task for task in range(20)
    ]
    assert {report.metadata["pid"] for report in loader.rollouts} == {os.getpid()}
    assert threading.current_thread().name not in {report.metadata["thread"] for report in loader.rollouts}
    assert result.rollouts == {"succeeded": 20}
    assert result.store == "local"
    assert train.client() is loader


def test_failed_tasks_are_counted_as_such():
    @rollout
    def agent(task: float, llm: LLM) -> float:
        if task < 0:
            raise ValueError("negative")
        return task

    assert trainer().fit(agent, DevTaskLoader([1, -1, 2], RESOURCES)).rollouts == {
        "succeeded": 2,
        "failed": 1,
    }


def test_the_agent_knows_its_trainer():
    seen: list[Any] = []

    class Knowing(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> None:
            seen.append((self.trainer, self.trainer.client()))

    loader = DevTaskLoader([1], RESOURCES)
    train = trainer()
    train.fit(Knowing(), loader)
    assert seen == [(train, loader)]


def test_fit_works_inside_of_a_running_loop():
    loader = DevTaskLoader([1.0], RESOURCES)

    async def main() -> TrainingResult:
        return trainer().fit(double_async, loader)

    assert asyncio.run(main()).rollouts == {"succeeded": 1}


def test_the_trainers_adapter_makes_the_triplets_of_trained_agents_alone():
    pytest.importorskip("lightning_adapter_triplet", reason="lightning-adapter-triplet is not installed")

    class Two(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            for name in ("planner", "writer"):
                message = '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
                answer = '{"choices": [{"message": {"role": "assistant", "content": "I am "}}]}'
                answer = answer.replace("I am ", f"I am {name}")
                attributes = {
                    "openinference.span.kind": "LLM",
                    "input.value": message,
                    "output.value": answer,
                }
                emit_span("ChatCompletion", {**attributes, "gen_ai.agent.name": name})
            return 1.0

    with pytest.warns(DeprecationWarning, match="trained_agents"):
        agent = Two(trained_agents="writer")
    loader = DevTaskLoader([1], RESOURCES)
    with pytest.warns(DeprecationWarning, match="triplet_exporter is deprecated; use adapter"):
        train = trainer(triplet_exporter="triplet")
    train.fit(agent, loader)
    assert [triplet.metadata["agent_name"] for triplet in loader.rollouts[0].triplets or ()] == ["writer"]


# What may be given as data


def test_dev_data_take_the_place_of_the_server():
    loader = DevTaskLoader([1.0, 2.0], RESOURCES)
    train = trainer(dev=True)
    assert train.fit(double, "http://127.0.0.1:1", dev_data=loader).rollouts == {"succeeded": 2}
    assert train.client() is loader


def test_dev_data_run_without_the_algorithm():
    loader = DevTaskLoader([1.0], RESOURCES)
    assert trainer(dev=True, algorithm=Waiting()).fit(double, [1.0], dev_data=loader).rollouts == {
        "succeeded": 1
    }


def test_dev_data_may_be_a_url(server: AgentLightningServer):
    tasks = queue(server, 1.0)
    with pytest.warns(DeprecationWarning, match="dev_backend is deprecated"):
        trainer(dev=True, max_rollouts=1).fit(double, [1.0], dev_backend=server.endpoint)
    assert rewards(server, tasks) == [2.0]


def test_a_dry_run_does_not_touch_the_real_server():
    with pytest.raises(ConfigurationError, match=r"dev_data, such as DevTaskLoader\(tasks, resources\)"):
        trainer(dev=True).fit(double, "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        (
            {},
            {"train_data": "127.0.0.1:8000"},
            "train_data: endpoint '127.0.0.1:8000' has no scheme; did you mean",
        ),
        (
            {"dev": True},
            {"train_data": [1], "dev_data": "dev.json"},
            "dev_data: endpoint 'dev.json' has no scheme",
        ),
        (
            {},
            {"train_data": [1], "val_data": "http://x:1"},
            "val_data is a v0.1 server, and train_data is none",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(settings: dict[str, Any], data: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        trainer(**settings).fit(double, **data)


def test_what_is_no_agent_is_refused():
    with pytest.raises(ConfigurationError, match="@rollout"):
        trainer().fit(len, DevTaskLoader([1], RESOURCES))  # type: ignore[arg-type]


def test_a_client_before_there_was_a_server_is_an_error():
    with pytest.raises(ConfigurationError, match="fit was given none; give its URL as train_data"):
        trainer().client()


def test_a_server_hands_out_validation_tasks_too(caplog: pytest.LogCaptureFixture):
    loader = DevTaskLoader([1.0], RESOURCES)
    assert trainer().fit(double, loader, val_data=loader).rollouts == {"succeeded": 1}
    assert "val_data" not in caplog.text
    loader, other = DevTaskLoader([1.0], RESOURCES), DevTaskLoader([1.0], RESOURCES)
    assert trainer().fit(double, loader, val_data=other).rollouts == {"succeeded": 1}
    assert other.rollouts == []
    assert "val_data is not asked for tasks" in caplog.text


def test_settings_without_an_effect_are_named(caplog: pytest.LogCaptureFixture):
    train = trainer(hooks=[Hook()], initial_resources=RESOURCES)
    train.fit(double, DevTaskLoader([1.0], RESOURCES))
    assert "no effect on tasks of a v0.1 server" in caplog.text
    assert "Trainer(hooks=..., initial_resources=...)" in caplog.text


# Algorithms


class Nothing(TraceAdapter[list[Any]]):
    """An adapter that makes nothing of spans."""

    def adapt(self, source: Any, /) -> list[Any]:
        return []


class Waiting(BaseAlgorithm):
    """Waits for ever."""

    cancelled = False

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Working(BaseAlgorithm):
    """Queues tasks on a server and waits for their results; sync."""

    client: Any = None

    def __init__(self, server: AgentLightningServer, *tasks: float) -> None:
        self.server = server
        self.tasks = tasks
        self.seen: dict[str, Any] = {}

    def set_client(self, client: Any) -> None:
        self.client = client

    def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        self.seen = {
            "data": (train_dataset, val_dataset),
            "client": self.client,
            "trainer's": self.get_trainer().client(),
            "adapter": self.get_adapter(),
            "resources": self.get_initial_resources(),
        }
        tasks = [*self.tasks, *(train_dataset or ())]
        self.log_metrics(reward=sum(filter(None, rewards(self.server, queue(self.server, *tasks)))))
        self.best_resources = {"p": PromptTemplate(template="best")}


class Serving(Working):
    """The same, with a server of its own that starts with the algorithm; async."""

    def get_client(self) -> AgentLightningClient:
        return AgentLightningClient(self.server.endpoint, poll_interval=0.01)

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:  # type: ignore[override]
        await self.server.start()
        await self.server.update_resources(RESOURCES)
        await asyncio.to_thread(Working.run, self, train_dataset, val_dataset)
        await self.server.stop()


@pytest.mark.parametrize("n_runners", [1, 2])
def test_an_algorithm_gets_the_client_of_the_server(server: AgentLightningServer, n_runners: int):
    algorithm = Working(server, 1.0, 2.0, 3.0)
    train = trainer(algorithm=algorithm, n_runners=n_runners, initial_resources=RESOURCES, adapter=Nothing())
    client = AgentLightningClient(server.endpoint, poll_interval=0.05)
    result = train.fit(double, client, val_data=[7.0])
    assert algorithm.seen == {
        "data": (None, [7.0]),
        "client": client,
        "trainer's": client,
        "adapter": train.adapter,
        "resources": RESOURCES,
    }
    assert (result.status, result.rollouts) == ("succeeded", {"succeeded": 3})
    assert [entry["reward"] for entry in result.metrics] == [12.0]
    assert result.best_resources == {"p": PromptTemplate(template="best")}
    assert result.settings["algorithm"] == "Working"


@pytest.mark.parametrize("n_runners", [1, 2])
def test_an_algorithm_with_a_client_of_its_own_takes_a_dataset(n_runners: int):
    server = AgentLightningServer(port=0)
    run_sync(server.start())
    algorithm = Serving(server)
    train = trainer(algorithm=algorithm, n_runners=n_runners, adapter=Nothing())
    run_sync(server.stop())
    try:
        result = train.fit(double, [1.0, 2.0], val_data=[7.0])
    finally:
        run_sync(server.close())
    assert algorithm.seen["data"] == ([1.0, 2.0], [7.0])
    assert [entry["reward"] for entry in result.metrics] == [6.0]
    assert result.rollouts == {"succeeded": 2}


def test_a_dataset_of_such_an_algorithm_is_checked():
    with pytest.raises(DatasetError, match="the train dataset is empty"):
        trainer(algorithm=Serving(AgentLightningServer(port=0))).fit(double, [])


def test_a_dry_run_with_such_an_algorithm_needs_a_fast_one():
    class Mock(FastAlgorithm):
        loader = DevTaskLoader([1.0, 2.0], RESOURCES)

        def get_client(self) -> DevTaskLoader:
            return self.loader

        def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            self.log_metrics(tasks=len(train_dataset))

    with pytest.raises(ConfigurationError, match="a dry run needs a FastAlgorithm, and Serving is none"):
        trainer(dev=True, algorithm=Serving(AgentLightningServer(port=0))).fit(double, [1.0])
    result = trainer(dev=True, algorithm=Mock()).fit(double, [9.0], dev_data=[1.0, 2.0, 3.0])
    assert result.metrics[0]["tasks"] == 3


def test_an_algorithm_whose_workers_are_done_is_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(crew, "GRACEFUL_SECONDS", 0.05)
    algorithm = Waiting()
    result = trainer(algorithm=algorithm).fit(double, DevTaskLoader([1.0], RESOURCES))
    assert (result.status, result.rollouts) == ("cancelled", {"succeeded": 1})
    assert algorithm.cancelled
    assert "all workers are done; ending the algorithm" in caplog.text


def test_the_error_of_an_algorithm_is_raised_once_the_workers_have_stopped(server: AgentLightningServer):
    class Broken(BaseAlgorithm):
        async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            raise ZeroDivisionError("learning rate")

    with pytest.raises(ZeroDivisionError, match="learning rate"):
        trainer(algorithm=Broken()).fit(double, server.endpoint)
    for thread in threading.enumerate():
        if thread.name.startswith("lightning-worker"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_sync_agent_that_is_stuck_at_the_end_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew, "GRACEFUL_SECONDS", 0.05)
    begun, release = threading.Event(), threading.Event()

    class Stuck(LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> None:
            begun.set()
            release.wait(PATIENCE)

    class Short(BaseAlgorithm):
        def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            begun.wait(PATIENCE)

    loader = DevTaskLoader([1.0], RESOURCES)
    try:
        assert trainer(algorithm=Short()).fit(Stuck(), loader).rollouts == {}
        assert loader.rollouts == []
    finally:
        release.set()


# Workers that fail


@rollout
def deadly(task: Any, llm: LLM) -> float:
    if task == "die":
        os._exit(3)
    return 1.0


def test_a_worker_that_dies_is_reported_and_the_others_go_on(
    server: AgentLightningServer, caplog: pytest.LogCaptureFixture
):
    others = queue(server, "die", *range(4))[1:]

    class Waits(BaseAlgorithm):
        def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            self.log_metrics(rewards=rewards(server, others))

    client = AgentLightningClient(server.endpoint, poll_interval=0.05)
    result = trainer(algorithm=Waits(), n_runners=2).fit(deadly, client)
    assert result.metrics[0]["rewards"] == [1.0, 1.0, 1.0, 1.0]
    assert (result.status, result.rollouts) == ("succeeded", {"succeeded": 4})
    assert "has failed; what it had in hand, the server hands out again: its process ended" in caplog.text
    assert "with exit code 3" in caplog.text


def test_without_any_worker_left_it_is_an_error(server: AgentLightningServer):
    queue(server, "die", "die")
    algorithm = Waiting()
    with pytest.raises(ExecutionError, match=r"worker \d has failed, and none is left: .*exit code 3"):
        trainer(algorithm=algorithm, n_runners=2).fit(deadly, server.endpoint)
    assert algorithm.cancelled


class Unready(DummyTracer):
    """A tracer that cannot be set up."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"no port for tracer {worker_id}")


@pytest.mark.parametrize("n_runners", [1, 2])
def test_a_worker_that_cannot_start_says_why(server: AgentLightningServer, n_runners: int):
    with pytest.raises(
        ExecutionError, match=r"worker 0 has failed, and none is left: .*no port for tracer 0"
    ):
        trainer(n_runners=n_runners, tracer=Unready).fit(double, server.endpoint)


def test_an_agent_that_cannot_travel_is_named(server: AgentLightningServer):
    class Locked(LitAgent[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="the agent: this Locked cannot be sent to another process"):
        trainer(n_runners=2).fit(Locked(), server.endpoint)


def test_a_server_that_is_none_is_an_error_of_fit(server: AgentLightningServer):
    with pytest.raises(ExecutionError, match="worker 0 has failed, and none is left"):
        trainer().fit(double, f"{server.endpoint}/elsewhere")
