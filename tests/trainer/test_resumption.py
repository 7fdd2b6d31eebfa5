"""Which run is resumed, who may do it, and what its end has left in the store."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightning_core import LLM, BaseAlgorithm, PromptTemplate, Trainer, algo, rollout
from lightning_core.bridge import run_sync
from lightning_core.errors import ConfigurationError, ResumeError, UnserializableValueError
from lightning_core.runner.identity import pid_namespace
from lightning_core.store.base import LightningStore
from lightning_core.trainer import owner, resumption
from lightning_core.trainer.owner import FRESH_SECONDS, RunHold, is_held, this_host
from lightning_core.trainer.resumption import clear_up
from lightning_core.types import RolloutConfig, Run, RunOwner

sqlite = pytest.importorskip(
    "lightning_store_sqlite", reason="runs that resume need a durable store, which is a plugin"
)

MODEL = LLM(endpoint="http://127.0.0.1:1/v1", model="m", api_key="yesterday")


@rollout
async def agent(task: float, llm: LLM) -> float:
    return task


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@contextmanager
def trainer(url: str, algorithm: Any = "baseline", **settings: Any) -> Iterator[Trainer]:
    made = Trainer(
        **{
            "tracer": "dummy",
            "store": url,
            "algorithm": algorithm,
            "initial_resources": {"llm": MODEL},
            **settings,
        }
    )
    try:
        yield made
    finally:
        run_sync(made.store.close())


def in_store(url: str, work: Callable[[LightningStore], Awaitable[Any]]) -> Any:
    async def working() -> Any:
        store = sqlite.SqliteLightningStore(url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(working())


def runs(url: str) -> list[Run]:
    return in_store(url, lambda store: store.query_runs())


@algo
async def failing(store: LightningStore, train_dataset: list[float]) -> None:
    """Fails when its rollouts are done."""
    made = [await store.enqueue_rollout(task) for task in train_dataset]
    await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in made])
    raise ZeroDivisionError("nearly done")


def fail(url: str, algorithm: Any = failing, **settings: Any) -> Run:
    with trainer(url, algorithm, **settings) as made, pytest.raises(ZeroDivisionError):
        made.fit(agent, [1.0, 2.0])
    return runs(url)[-1]


# Which run


def test_a_store_that_forgets_refuses_to_resume():
    with (
        trainer("memory") as made,
        pytest.raises(ConfigurationError, match=r"'memory' forgets its runs.*sqlite:///"),
    ):
        made.fit(agent, [1.0], resume=True)


def test_nothing_to_resume_is_said(url: str):
    with trainer(url) as made:
        with pytest.raises(ResumeError, match=r"no run to resume in sqlite:///.*Leave resume out"):
            made.fit(agent, [1.0], resume=True)
        result = made.fit(agent, [1.0])
        with pytest.raises(ResumeError, match=f"the newest, {result.run_id}, has succeeded"):
            made.fit(agent, [1.0], resume=True)
        with pytest.raises(ResumeError, match="has succeeded, so there is nothing to resume"):
            made.fit(agent, [1.0], resume=result.run_id)
        with pytest.raises(ResumeError, match=r"no run 'run-x' in .*that can be resumed: none"):
            made.fit(agent, [1.0], resume="run-x")
        with pytest.raises(ConfigurationError, match="resume must be True, 'auto' or the id of a run, not 3"):
            made.fit(agent, [1.0], resume=3)  # type: ignore[arg-type]
    assert [run.run_id for run in runs(url)] == [result.run_id]


def test_auto_begins_a_run_resumes_it_after_an_end_and_begins_another_after_a_success(url: str):
    with trainer(url, failing) as made, pytest.raises(ZeroDivisionError):
        made.fit(agent, [1.0, 2.0], resume="auto")
    with trainer(url, failing) as made, pytest.raises(ZeroDivisionError):
        made.fit(agent, [1.0, 2.0], resume="auto")
    assert [run.resumed for run in runs(url)] == [1]
    with trainer(url) as made:
        first = made.fit(agent, [1.0], resume="auto")
        second = made.fit(agent, [1.0], resume="auto")
    assert (first.resumed, second.resumed) == (0, 0)
    assert len({run.run_id for run in runs(url)}) == 3


def test_a_run_that_failed_before_it_began_anything_is_not_the_newest_to_resume(url: str):
    begun = fail(url)

    @algo
    async def failing(store: LightningStore, train_dataset: list[float]) -> None:
        raise OSError("the port is taken")

    failing.__qualname__ = begun.settings["algorithm_class"]
    with trainer(url, failing) as made, pytest.raises(OSError, match="taken"):
        made.fit(agent, [1.0, 2.0])
    assert [run.status for run in runs(url)] == ["failed", "failed"]
    fail_again = pytest.raises(ZeroDivisionError)
    with trainer(url, globals()["failing"]) as made, fail_again:
        made.fit(agent, [1.0, 2.0], resume=True)
    assert [run.resumed for run in runs(url)] == [1, 0]


def test_a_run_of_another_algorithm_is_refused_and_a_fitting_one_is_named(url: str):
    mine = fail(url)

    @algo
    async def other(store: LightningStore) -> None:
        await store.enqueue_rollout(1.0)
        raise ZeroDivisionError

    newest = fail(url, other)
    with trainer(url, failing) as made, pytest.raises(ResumeError) as refusal:
        made.fit(agent, [1.0], resume=True)
    assert newest.run_id in str(refusal.value)
    assert "other, and this is failing" in str(refusal.value)
    assert f"resume='{mine.run_id}'" in str(refusal.value)


def test_other_settings_are_allowed_with_a_warning(url: str, caplog: pytest.LogCaptureFixture):
    fail(url)
    with trainer(url, failing, n_runners=2) as made, pytest.raises(ZeroDivisionError):
        made.fit(agent, [1.0, 2.0], resume=True)
    assert "n_runners was 1 and is 2" in caplog.text
    (run,) = runs(url)
    assert run.settings["n_runners"] == 2


def test_an_instance_is_the_same_algorithm_as_its_class(url: str):
    run = fail(url, Stopping)
    with trainer(url, Stopping()) as made:
        assert made.fit(agent, [1.0, 2.0], resume=run.run_id).run_id == run.run_id


class Stopping(BaseAlgorithm):
    """Fails in its first life, after a checkpoint."""

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        if self.resumed_state is None:
            self.log_metrics(life=1)
            await self.checkpoint({"a": [1, {"b": None}]})
            self.log_metrics(lost="what is logged after the checkpoint is logged again")
            raise ZeroDivisionError
        self.log_metrics(life=2, state=self.resumed_state)


@pytest.mark.parametrize("value", ["1", "true", "the id"])
def test_a_variable_resumes_the_first_run_of_a_process(url: str, value: str, monkeypatch: pytest.MonkeyPatch):
    run = fail(url, Stopping)
    monkeypatch.setattr(resumption, "_variable_used", False)
    monkeypatch.setenv("LIGHTNING_CORE_RESUME", value.replace("the id", run.run_id))
    with trainer(url, Stopping) as made:
        result = made.fit(agent, [1.0])
        assert (result.run_id, result.resumed) == (run.run_id, 1)
        with pytest.raises(ZeroDivisionError):
            made.fit(agent, [1.0])


def test_the_variable_does_not_overrule_the_argument(url: str, monkeypatch: pytest.MonkeyPatch):
    fail(url, Stopping)
    monkeypatch.setattr(resumption, "_variable_used", False)
    monkeypatch.setenv("LIGHTNING_CORE_RESUME", "1")
    with trainer(url, Stopping) as made, pytest.raises(ZeroDivisionError):
        made.fit(agent, [1.0], resume=False)


# Checkpoints


def test_state_and_metrics_of_the_checkpoint_are_there_exactly_once(url: str):
    run = fail(url, Stopping)
    with trainer(url, Stopping) as made:
        result = made.fit(agent, [1.0], resume=True)
    entries = [{name: value for name, value in entry.items() if name != "time"} for entry in result.metrics]
    assert entries == [{"life": 1}, {"life": 2, "state": {"a": [1, {"b": None}]}}]
    assert result.start_time == run.start_time
    assert result.end_time > result.start_time
    (stored,) = runs(url)
    assert (stored.status, stored.error, stored.owner, stored.resumed) == ("succeeded", None, None, 1)


def test_a_sync_algorithm_checkpoints_through_the_bridge(url: str):
    @algo
    def sync(algorithm: Any) -> None:
        state = algorithm.resumed_state or {"step": 0}
        algorithm.log_metrics(step=state["step"])
        if state["step"] == 0:
            run_sync(algorithm.checkpoint({"step": 1}))
            raise ZeroDivisionError

    fail(url, sync)
    with trainer(url, sync) as made:
        result = made.fit(agent, [1.0], resume=True)
    assert [entry["step"] for entry in result.metrics] == [0, 1]


def test_best_resources_come_back_with_the_model_where_it_is_today(url: str):
    other = LLM(endpoint="http://127.0.0.1:3/v1", model="judge", api_key="kept")

    @algo
    async def best(algorithm: Any) -> None:
        if algorithm.resumed_state is None:
            tuned = MODEL.model_copy(update={"sampling_parameters": {"temperature": 0.5}})
            algorithm.best_resources = {"llm": tuned, "judge": other}
            await algorithm.checkpoint({"step": 1})
            raise ZeroDivisionError
        found.update(algorithm.best_resources)

    found: dict[str, Any] = {}
    fail(url, best)
    today = LLM(endpoint="http://127.0.0.1:2/v1", model="m", api_key="today")
    with trainer(url, best, initial_resources={"llm": today}) as made:
        result = made.fit(agent, [1.0], resume=True)
    assert found == result.best_resources
    llm = found["llm"]
    assert (llm.endpoint, llm.api_key) == ("http://127.0.0.1:2/v1", "today")
    assert llm.sampling_parameters == {"temperature": 0.5}
    assert found["judge"] == other


def test_best_resources_come_back(url: str):
    @algo
    async def best(algorithm: Any) -> None:
        if algorithm.resumed_state is None:
            algorithm.best_resources = {"prompt": PromptTemplate(template="a")}
            await algorithm.checkpoint({"step": 1})
            raise ZeroDivisionError

    fail(url, best)
    with trainer(url, best) as made:
        assert made.fit(agent, [1.0], resume=True).best_resources == {"prompt": PromptTemplate(template="a")}


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, ConfigurationError, "override state_dict and load_state_dict"),
        ({"a": object()}, UnserializableValueError, "more than JSON can hold"),
        ({"a": float("nan")}, UnserializableValueError, "more than JSON can hold"),
        ({"a": (1, 2)}, UnserializableValueError, "would not come back from JSON as it is"),
        ({1: 2}, UnserializableValueError, "would not come back from JSON as it is"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_whatever_the_store(
    state: Any, error: type[Exception], message: str
):
    @algo
    async def wrong(algorithm: Any) -> None:
        await algorithm.checkpoint(state)

    with trainer("memory", wrong) as made, pytest.raises(error, match=message):
        made.fit(agent, [1.0])


def test_a_second_fit_of_the_same_object_starts_from_nothing(url: str):
    with trainer(url) as made:
        results = [made.fit(agent, [1.0, 2.0], val_data=[3.0]) for _ in range(2)]
    assert [result.rollouts for result in results] == [{"succeeded": 3}] * 2
    assert [len(result.metrics) for result in results] == [2, 2]


# Whose run it is


def gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("host", "pid", "age", "held"),
    [
        (this_host(), os.getppid(), 1.0, True),
        (this_host(), os.getppid(), FRESH_SECONDS + 1, False),
        (this_host(), -1, 1.0, False),
        # A hold of this process that this process knows nothing of: it is over.
        (this_host(), os.getpid(), 1.0, False),
        ("elsewhere", -1, 1.0, True),
        ("elsewhere", -1, FRESH_SECONDS + 1, False),
    ],
    ids=["alive", "silent", "dead", "over", "elsewhere", "silent elsewhere"],
)
def test_a_run_is_held_while_its_owner_gives_signs_of_life(host: str, pid: int, age: float, held: bool):
    pid = gone_pid() if pid == -1 else pid
    hold = RunOwner(host=host, pid=pid, token="t", heartbeat_time=time.time() - age)
    assert is_held(Run(owner=hold)) is held
    assert not is_held(Run(owner=hold, status="failed"))


def test_a_run_that_another_process_is_at_work_on_is_refused(url: str):
    run = fail(url)
    hold = RunOwner(host="elsewhere", pid=5, token="t", heartbeat_time=time.time())
    held = run.model_copy(update={"status": "running", "owner": hold})
    in_store(url, lambda store: store.save_run(held))
    for wanted in (True, run.run_id):
        with (
            trainer(url, failing) as made,
            pytest.raises(ResumeError, match="process 5 on elsewhere is at work on it"),
        ):
            made.fit(agent, [1.0], resume=wanted)
    assert runs(url) == [held]


def test_a_run_is_held_while_it_lasts_and_by_one_fit_only(url: str):
    @algo
    async def resuming(trainer: Trainer) -> None:
        (run,) = await trainer.store.query_runs()
        assert run.owner is not None
        assert run.owner.pid == os.getpid()
        with another(url, resuming) as second, pytest.raises(ResumeError, match="is at work on it"):
            await asyncio.to_thread(second.fit, agent, [1.0], resume=True)

    another = trainer
    with trainer(url, resuming) as made:
        assert made.fit(agent, [1.0]).status == "succeeded"


async def test_of_two_that_claim_a_run_at_once_one_gets_it(tmp_path: Path):
    store = sqlite.SqliteLightningStore(tmp_path / "runs.db")
    run = Run(resumed=1)
    holds = [RunHold(store, run, lambda why: None) for _ in range(2)]
    outcomes = await asyncio.gather(*(hold.claim() for hold in holds), return_exceptions=True)
    for hold in holds:
        await hold.release()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "ResumeError"]
    await store.close()


def test_who_loses_a_run_stops_and_does_not_store_its_end(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owner, "_BEAT_SECONDS", 0.3)

    @algo
    async def robbed(store: LightningStore, trainer: Trainer) -> None:
        (run,) = await trainer.store.query_runs()
        hold = RunOwner(host="elsewhere", pid=5, token="t", heartbeat_time=time.time())
        await trainer.store.save_run(run.model_copy(update={"owner": hold}))
        number = 0
        while True:
            await store.enqueue_rollout(number)
            number += 1

    with (
        trainer(url, robbed) as made,
        pytest.raises(ResumeError, match="taken over by process 5 on elsewhere"),
    ):
        made.fit(agent, [1.0])
    (run,) = runs(url)
    assert (run.status, run.owner and run.owner.host) == ("running", "elsewhere")


# What the end has left


def leave(url: str, host: str, pid: int) -> Run:
    """A run of ``baseline`` whose process has gone with one rollout under way and one in the queue."""

    async def work(store: LightningStore) -> Run:
        from lightning_core.trainer.scope import run_store

        run = Run(settings={"algorithm_class": "Baseline"})
        await store.save_run(run)
        view = run_store(store, run.run_id)
        stats = {"host": host, "pid": pid, "pid_namespace": pid_namespace()}
        await store.update_worker("gone", heartbeat_stats=stats)
        for task in (1.0, 2.0):
            await view.enqueue_rollout(task, mode="train", config=RolloutConfig())
        await view.dequeue_rollouts(1, "gone")
        return run

    return in_store(url, work)


def test_rollouts_of_a_dead_process_of_this_machine_are_taken_back_at_once(url: str):
    run = leave(url, socket.gethostname(), gone_pid())
    start = time.monotonic()
    with trainer(url) as made:
        result = made.fit(agent, [1.0, 2.0], resume=run.run_id)
    assert result.rollouts == {"succeeded": 2}
    # A lease is a minute.
    assert time.monotonic() - start < 30
    assert result.metrics[0]["mean_reward"] == 1.5


@pytest.mark.parametrize("retries", [["failed"], ["unresponsive"]])
async def test_a_lease_of_another_machine_is_waited_for_and_the_lost_attempt_does_not_count(
    retries: list[Any], tmp_path: Path
):
    now = 1e9
    store = sqlite.SqliteLightningStore(tmp_path / "runs.db", clock=lambda: now)
    run = Run()
    # A container may share this machine's name and not its processes.
    stats = {"host": socket.gethostname(), "pid_namespace": "another", "pid": gone_pid()}
    await store.update_worker("gone", heartbeat_stats=stats)
    config = RolloutConfig(unresponsive_seconds=60, retry_condition=retries)
    rollout = await store.enqueue_rollout("task", run_id=run.run_id, config=config)
    await store.dequeue_rollouts(1, "gone")
    await clear_up(store, run, {}, None)
    statuses: list[str] = []
    for later in (59, 61):
        now = 1e9 + later
        found = await store.get_rollout_by_id(rollout.rollout_id)
        statuses.append(found.status)
    assert statuses == ["preparing", "requeuing"]
    # From here on the rollout's own limits hold again.
    (again,) = await store.dequeue_rollouts(1, "new")
    await store.update_attempt(rollout.rollout_id, again.attempt.attempt_id, status="failed")
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found.status == "failed"
    await store.close()


def test_what_was_queued_gets_the_model_where_it_is_today_and_the_resources_of_the_end(url: str):
    seen: list[tuple[float, str, str]] = []

    @rollout
    async def noting(task: float, llm: LLM, prompt_template: PromptTemplate) -> float:
        seen.append((task, prompt_template.template, f"{llm.endpoint} {llm.api_key}"))
        return task

    life = 0

    @algo
    async def tuning(store: LightningStore, initial_resources: Any) -> None:
        first = await store.enqueue_rollout(1.0)
        if life:
            # It runs, with the newer prompt, though nothing here has added that again yet.
            rollouts = await store.query_rollouts()
            await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in rollouts])
        else:
            await store.wait_for_rollouts(rollout_ids=[first.rollout_id])
        await store.add_resources({**initial_resources, "prompt_template": PromptTemplate(template="newer")})
        await store.enqueue_rollout(2.0)
        if not life:
            raise ZeroDivisionError

    def fit(port: int, **settings: Any) -> None:
        model = LLM(endpoint=f"http://127.0.0.1:{port}/v1", model="m", api_key=f"key {port}")
        resources = {"llm": model, "prompt_template": PromptTemplate(template="first")}
        with trainer(
            url, tuning, initial_resources=resources, runner={"type": "agent", "max_rollouts": 1}
        ) as made:
            made.fit(noting, [1.0], **settings)

    with pytest.raises(ZeroDivisionError):
        fit(1)
    life = 1
    fit(2, resume=True)
    assert seen == [
        (1.0, "first", "http://127.0.0.1:1/v1 key 1"),
        (2.0, "newer", "http://127.0.0.1:2/v1 key 2"),
    ]


def test_a_checkpoint_brings_the_resources_back_that_were_the_latest(url: str):
    prompts: list[str] = []

    @rollout
    async def noting(task: float, prompt_template: PromptTemplate) -> float:
        prompts.append(prompt_template.template)
        return task

    @algo
    async def tuning(store: LightningStore, algorithm: Any) -> None:
        if algorithm.resumed_state is None:
            await store.add_resources({"prompt_template": PromptTemplate(template="learnt")})
            await algorithm.checkpoint({"step": 1})
            raise ZeroDivisionError
        made = await store.enqueue_rollout(1.0)
        await store.wait_for_rollouts(rollout_ids=[made.rollout_id])

    resources = {"prompt_template": PromptTemplate(template="first")}
    fail(url, tuning, initial_resources=resources)
    with trainer(url, tuning, initial_resources=resources) as made:
        made.fit(noting, [1.0], resume=True)
    assert prompts == ["learnt"]


def test_resuming_is_logged(url: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lightning_core.trainer")
    run = leave(url, socket.gethostname(), gone_pid())
    with trainer(url) as made:
        made.fit(agent, [1.0, 2.0], resume=True)
    assert f"resuming run {run.run_id}" in caplog.text
    assert "1 rollouts whose worker is gone are queued again" in caplog.text
