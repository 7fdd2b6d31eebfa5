"""The trainer: parts by name, a result that can be kept, and clear errors for what cannot work."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_core import (
    AgentRunnerV2,
    BaseAlgorithm,
    FastAlgorithm,
    Hook,
    InMemoryLightningStore,
    LightningStore,
    PromptTemplate,
    Trainer,
    TrainingResult,
    algo,
    rollout,
)
from lightning_core.bridge import run_sync
from lightning_core.engine import BaseEngine
from lightning_core.errors import (
    ConfigurationError,
    DatasetError,
    EngineError,
    InvalidHookError,
    InvalidSpecError,
    PluginSettingsError,
    UnknownPluginError,
)
from lightning_core.execution import SharedMemoryExecutionStrategy
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM

RESOURCES = {"llm": LLM(endpoint="http://localhost/v1", model="m", api_key="secret")}


@rollout
async def agent(task: float, llm: LLM) -> float:
    return task


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", "algorithm": "baseline", "initial_resources": RESOURCES, **settings})


@pytest.mark.parametrize("n_runners", [1, 4])
def test_fit_runs_every_task_once_and_returns_a_result(n_runners: int):
    train = trainer(n_runners=n_runners)
    result = train.fit(agent, [0.0, 0.5, 1.0] * 10, val_data=[1.0, 1.0])
    assert result.status == "succeeded"
    assert result.rollouts == {"succeeded": 32}
    assert [(entry["mode"], entry["rollouts"], entry["mean_reward"]) for entry in result.metrics] == [
        ("train", 30, 0.5),
        ("val", 2, 1.0),
    ]
    inputs = sorted(one.input for one in run_sync(train.store.query_rollouts(run_id=result.run_id)))
    assert inputs == sorted([0.0, 0.5, 1.0] * 10 + [1.0, 1.0])


def test_the_run_is_kept_in_the_store_with_its_result_and_without_keys():
    train = trainer()
    result = train.fit(agent, [1.0])
    (run,) = run_sync(train.store.query_runs())
    assert (run.run_id, run.status) == (result.run_id, "succeeded")
    assert run.result is not None
    assert run.result["rollouts"] == {"succeeded": 1}
    assert run.settings["algorithm"] == "baseline"
    assert "secret" not in run.model_dump_json()


class SurroundedStrategy(SharedMemoryExecutionStrategy):
    """Looks at the runs of the store when it is prepared, and when it is released."""

    store: LightningStore
    seen: list[list[str]]

    @contextmanager
    def prepared(self) -> Generator[None]:
        self.seen = [self.look()]
        try:
            yield
        finally:
            self.seen.append(self.look())

    def look(self) -> list[str]:
        return [str(run.status) for run in run_sync(self.store.query_runs())]


@pytest.mark.parametrize(("task", "end"), [(1.0, "succeeded"), (None, "failed")])
def test_a_strategy_is_prepared_before_the_run_is_stored_and_released_after_its_end(task: Any, end: str):
    @algo
    async def algorithm(*, train_dataset: Any) -> None:
        assert train_dataset[0] is not None

    strategy = SurroundedStrategy()
    train = trainer(strategy=strategy, algorithm=algorithm)
    strategy.store = train.store
    with nullcontext() if end == "succeeded" else pytest.raises(AssertionError):
        train.fit(agent, [task])
    assert strategy.seen == [[], [end]]


def test_a_run_that_its_strategy_refuses_is_not_stored():
    class Unable(SharedMemoryExecutionStrategy):
        @contextmanager
        def prepared(self) -> Generator[None]:
            raise ConfigurationError("there is no room")
            yield

    train = trainer(strategy=Unable())
    with pytest.raises(ConfigurationError, match="no room"):
        train.fit(agent, [1.0])
    assert run_sync(train.store.query_runs()) == []


def test_two_fits_of_one_trainer_are_two_runs():
    """Trap 33."""
    train = trainer()
    first, second = train.fit(agent, [1.0, 1.0]), train.fit(agent, [0.0])
    assert first.run_id != second.run_id
    assert (first.rollouts, second.rollouts) == ({"succeeded": 2}, {"succeeded": 1})
    assert second.metrics[0]["rewards"] == 1


def test_a_run_leaves_the_work_of_others_alone():
    store = InMemoryLightningStore()
    other = run_sync(store.enqueue_rollout(0.0, run_id="another run"))
    trainer(store=store).fit(agent, [1.0])
    untouched = run_sync(store.get_rollout_by_id(other.rollout_id))
    assert untouched is not None
    assert untouched.status == "queuing"


def test_result_survives_save_and_load(tmp_path: Path):
    @algo
    async def best() -> Any:
        return {"prompt": PromptTemplate(template="Say {word}"), **RESOURCES}

    result = trainer(algorithm=best).fit(agent, [1.0])
    loaded = TrainingResult.load(result.save(tmp_path / "result.json"))
    assert loaded == result.without_keys()
    assert loaded.best_resources is not None
    assert loaded.best_resources["prompt"] == PromptTemplate(template="Say {word}")
    assert "secret" not in (tmp_path / "result.json").read_text()


def test_loading_something_else_says_so(tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigurationError, match="holds no training result"):
        TrainingResult.load(path)


# Specifications


class OwnTracer(DummyTracer):
    pass


@pytest.mark.parametrize(
    "spec",
    [
        "dummy",
        OwnTracer,
        OwnTracer(),
        lambda: OwnTracer(),
        {"type": "dummy"},
        {"type": OwnTracer},
        "lightning_core.tracer.dummy:DummyTracer",
        "lightning_core.tracer.dummy.DummyTracer",
    ],
)
def test_a_tracer_may_be_given_in_every_form(spec: Any):
    assert isinstance(trainer(tracer=spec).tracer, DummyTracer)


def test_aliases_and_settings_select_too():
    train = trainer(algorithm={"type": "mock", "n_epochs": 2}, strategy="shm", store="memory", runner="agent")
    assert train.fit(agent, [1.0, 0.0]).rollouts == {"succeeded": 4}


def test_runner_settings_reach_every_runner():
    train = trainer(runner={"type": "agent", "concurrency": 7}, n_runners=2)
    assert isinstance(train.runner, AgentRunnerV2)
    assert train.runner.concurrency == 7
    assert train.fit(agent, [1.0] * 20).rollouts == {"succeeded": 20}


def test_max_rollouts_bounds_the_run():
    train = trainer(max_rollouts=3, strategy={"type": "shm", "graceful_seconds": 0.2})
    result = train.fit(agent, [1.0] * 10)
    assert result.rollouts == {"queuing": 7, "succeeded": 3}
    # The algorithm did not get what it asked for, and that must not look like success.
    assert result.status == "cancelled"
    (run,) = run_sync(train.store.query_runs())
    assert run.error is not None
    assert "max_rollouts" in run.error


class Recording(Hook):
    """A hook that notes its set-up and tear-down, and may fail in one of them."""

    def __init__(self, log: list[str], name: str, fails: str = "") -> None:
        self.log, self.name, self.fails = log, name, fails

    def _note(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what == self.fails:
            raise RuntimeError(f"{self.name} fails in {what}")

    def init(self, *args: Any, **kwargs: Any) -> None:
        self._note("init")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._note("teardown")


def test_a_hook_that_fails_in_its_set_up_ends_the_run_and_the_others_are_torn_down():
    log: list[str] = []
    train = trainer(hooks=[Recording(log, "a"), Recording(log, "b", fails="init")])
    with pytest.raises(RuntimeError, match="b fails in init"):
        train.fit(agent, [1.0])
    assert log == ["init a", "init b", "teardown a", "teardown b"]


def test_a_hook_that_fails_in_its_tear_down_costs_neither_the_result_nor_other_hooks():
    log: list[str] = []
    train = trainer(hooks=[Recording(log, "a", fails="teardown"), Recording(log, "b")])
    assert train.fit(agent, [1.0]).rollouts == {"succeeded": 1}
    assert log == ["init a", "init b", "teardown a", "teardown b"]


# Bad input


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tracer": "dumy"}, UnknownPluginError, "did you mean 'dummy'"),
        ({"store": {"type": "memory", "pat": "x"}}, PluginSettingsError, "pat"),
        ({"algorithm": {"type": "baseline", "n_epochs": 0}}, PluginSettingsError, "n_epochs"),
        ({"tracer": 3}, InvalidSpecError, "tracer"),
        ({"trace": "dummy"}, ConfigurationError, "did you mean 'tracer'"),
        ({"n_runners": 0}, ConfigurationError, "at least 1"),
        ({"initial_resources": {"llm": "gpt"}}, ConfigurationError, r"initial_resources\['llm'\] is a str"),
        ({"initial_resources": ["llm"]}, ConfigurationError, "must be a dict"),
        ({"n_runners": 2, "runner": AgentRunnerV2(DummyTracer())}, ConfigurationError, "each of which needs"),
        ({"n_runners": 2, "n_workers": 2}, ConfigurationError, "deprecated name"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_arguments_are_refused_when_the_trainer_is_built(
    settings: dict[str, Any], error: type[Exception], message: str
):
    """Trap 31."""
    with pytest.raises(error, match=message):
        trainer(**settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty"),
        ((task for task in [1.0]), r"list\(dataset\)"),
        (3, "a int, without a length"),
    ],
)
def test_a_dataset_that_is_none_is_refused_before_anything_runs(data: Any, message: str):
    train = trainer()
    with pytest.raises(DatasetError, match=message):
        train.fit(agent, data)
    assert run_sync(train.store.query_runs()) == []


def test_a_plain_function_is_no_agent():
    def plain(task: Any, llm: LLM) -> float:
        return 1.0

    with pytest.raises(ConfigurationError, match="@rollout"):
        trainer().fit(plain, [1.0])  # type: ignore[arg-type]


def test_no_algorithm_says_which_there_are():
    with pytest.raises(ConfigurationError, match="baseline"):
        trainer(algorithm=None).fit(agent, [1.0])


class Client:
    def poll_next_task(self) -> None:
        raise AssertionError("must not be asked")


class Serving(BaseAlgorithm):
    def get_client(self) -> Any:
        raise AssertionError("must not be asked")

    def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        raise AssertionError("must not run")


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({}, {"train_data": "http://localhost:8000"}),
        ({}, {"train_data": Client()}),
        ({}, {"train_data": [1.0], "val_data": "http://localhost:8000"}),
        ({"dev": True}, {"train_data": [1.0], "dev_data": Client()}),
        ({"algorithm": Serving()}, {"train_data": [1.0]}),
    ],
)
def test_the_v0_1_api_needs_the_legacy_plugin(
    settings: dict[str, Any], data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "lightning_legacy", None)
    train = trainer(**settings)
    with pytest.raises(ImportError, match=r"a client as data is the v0.1 API.*pip install lightning-legacy"):
        train.fit(agent, **data)
    with pytest.raises(ImportError, match=r"Trainer.client is the v0.1 API.*pip install lightning-legacy"):
        train.client()


def test_dev_data_that_are_not_used_need_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lightning_legacy", None)
    assert trainer().fit(agent, [1.0], dev_data=Client()).rollouts == {"succeeded": 1}
    assert trainer(dev=True).fit(agent, "http://localhost", dev_data=[1.0, 1.0]).rollouts == {"succeeded": 2}


def test_a_run_on_a_v0_1_server_cannot_be_resumed():
    with pytest.raises(ConfigurationError, match=r"resume=True.*cannot be resumed"):
        trainer().fit(agent, "http://localhost:8000", resume=True)


def test_a_string_is_no_dataset():
    for method in (trainer().fit_v2, trainer().dev):
        with pytest.raises(
            DatasetError, match=r"train dataset is the string 'http://localhost'.*list of tasks"
        ):
            method(agent, "http://localhost")  # type: ignore[arg-type]


def test_a_sync_hook_is_refused_when_the_trainer_is_built():
    class Wrong(Hook):
        def on_rollout_start(self, **keywords: Any) -> None:  # type: ignore[override]
            """Not async."""

    with pytest.raises(InvalidHookError, match="on_rollout_start is not async"):
        trainer(hooks=[Wrong()])


def test_a_tracer_that_fails_in_its_worker_ends_the_run_with_its_error():
    class Failing(DummyTracer):
        def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no port for the tracer")

    train = trainer(tracer=Failing())
    with pytest.raises(RuntimeError, match="no port for the tracer"):
        train.fit(agent, [1.0])
    (run,) = run_sync(train.store.query_runs())
    assert run.status == "failed"
    assert run.error is not None
    assert "no port for the tracer" in run.error


def test_an_algorithm_error_is_raised_and_kept_with_the_run():
    @algo
    async def broken() -> None:
        raise ZeroDivisionError("learning rate")

    train = trainer(algorithm=broken)
    with pytest.raises(ZeroDivisionError):
        train.fit(agent, [1.0])
    (run,) = run_sync(train.store.query_runs())
    assert (run.status, run.error) == ("failed", "ZeroDivisionError: learning rate")


def test_a_stuck_sync_algorithm_does_not_keep_a_failed_run_from_ending(caplog: pytest.LogCaptureFixture):
    class Failing(DummyTracer):
        def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no port for the tracer")

    released = threading.Event()

    @algo
    def stuck() -> None:
        released.wait()

    strategy = {"type": "shared-memory", "graceful_seconds": 0.5, "cancel_seconds": 5.0}
    try:
        with pytest.raises(RuntimeError, match="no port"):
            trainer(algorithm=stuck, tracer=Failing(), strategy=strategy).fit(agent, [1.0])
        assert "left behind" not in caplog.text
    finally:
        released.set()


def test_a_store_that_fails_at_the_end_hides_no_error_and_leaves_no_engine_running(
    caplog: pytest.LogCaptureFixture,
):
    class Full(InMemoryLightningStore):
        async def statistics(self, **keywords: Any) -> Any:
            raise OSError("no space left")

    class Served(BaseEngine):
        stopped = False

        def start(self) -> LLM:
            return LLM(endpoint="http://localhost/v1", model="m")

        def stop(self) -> None:
            self.stopped = True

    @algo
    async def broken() -> None:
        raise ZeroDivisionError("learning rate")

    engine = Served()
    with pytest.raises(ZeroDivisionError):
        trainer(algorithm=broken, store=Full(), engine=engine).fit(agent, [1.0])
    assert engine.stopped
    assert "no space left" in caplog.text
    engine.stopped = False
    with pytest.raises(OSError, match="no space left"):
        trainer(store=Full(), engine=engine).fit(agent, [1.0])
    assert engine.stopped


# Deprecated and dry runs


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("n_workers", 2, "n_runners"),
        ("max_tasks", 5, "max_rollouts"),
        ("daemon", True, "no effect but on the workers of a v0.1 server"),
    ],
)
def test_deprecated_keywords_warn_with_the_replacement(old: str, value: Any, new: str):
    with pytest.warns(DeprecationWarning, match=new) as caught:
        Trainer(tracer="dummy", **{old: value})
    assert [warning.filename for warning in caught] == [__file__]


def test_dev_backend_is_the_deprecated_name_of_dev_data():
    with pytest.warns(DeprecationWarning, match="dev_backend is deprecated; use dev_data") as caught:
        result = trainer(dev=True).fit(agent, [1.0], dev_backend=[1.0, 1.0])
    assert [warning.filename for warning in caught] == [__file__]
    assert result.rollouts == {"succeeded": 2}


def test_dev_runs_the_baseline_if_there_is_no_algorithm():
    assert trainer(algorithm=None).dev(agent, [1.0]).rollouts == {"succeeded": 1}


class Slow(BaseAlgorithm):
    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        raise AssertionError("must not run")


class Quick(FastAlgorithm):
    ran = False

    def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        self.ran = True


@pytest.mark.parametrize("call", [lambda t: t.dev(agent, [1.0]), lambda t: t.fit(agent, [1.0])])
def test_a_dry_run_needs_a_fast_algorithm(call: Callable[[Trainer], Any]):
    with pytest.raises(ConfigurationError, match="FastAlgorithm"):
        call(trainer(algorithm=Slow(), dev=True))


def test_a_dry_run_uses_the_fast_algorithm_that_was_given():
    quick = Quick()
    trainer(algorithm=quick).dev(agent, [1.0])
    assert quick.ran


def test_dev_data_take_the_place_of_the_other_data_in_a_dry_run():
    result = trainer(algorithm=None, dev=True).fit(agent, [1.0] * 9, dev_data=[1.0])
    assert result.rollouts == {"succeeded": 1}


# Engines


class Models(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b'{"data": [{"id": "tiny"}]}')

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Any:
    server = HTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_engine_serves_the_resource_main_llm(endpoint: str):
    seen: list[tuple[str, str]] = []

    @rollout
    async def asking(task: float, llm: LLM) -> float:
        seen.append((llm.get_base_url(), llm.model))
        return 1.0

    Trainer(tracer="dummy", algorithm="baseline", engine={"type": "endpoint", "base_url": endpoint}).fit(
        asking, [1.0]
    )
    assert seen == [(endpoint, "tiny")]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, b"no"), "check the key"),
        ((404, b"no"), "check base_url"),
        ((200, b"<html>"), "OpenAI-compatible"),
        ((200, b'{"data": []}'), "lists no model"),
    ],
)
def test_an_endpoint_that_answers_wrongly_is_refused(
    endpoint: str, answer: tuple[int, bytes], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Models, "answer", answer)
    train = trainer(engine={"type": "endpoint", "base_url": endpoint})
    with pytest.raises(EngineError, match=message):
        train.fit(agent, [1.0])


def test_an_endpoint_that_refuses_connections_is_named(unused_tcp_port: int):
    train = trainer(engine={"type": "endpoint", "base_url": f"http://127.0.0.1:{unused_tcp_port}/v1"})
    with pytest.raises(EngineError, match=r"does not answer.*is the server running"):
        train.fit(agent, [1.0])


def test_an_endpoint_without_an_address_says_where_to_set_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(EngineError, match="OPENAI_BASE_URL"):
        trainer(engine="endpoint")
