"""``lightning-core runs export``, and what ``list`` and ``show`` say of runs that did not go well."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightning_core import LLM, Trainer, emit_reward, rollout
from lightning_core.bridge import run_sync
from lightning_core.cli import export, main
from lightning_core.types import Run, RunOwner, Span

sqlite = pytest.importorskip("lightning_store_sqlite", reason="stored runs need a durable store, a plugin")


@rollout
async def agent(task: float, llm: LLM) -> float:
    emit_reward(0.25)
    if task < 0:
        raise ValueError("negative task")
    return task


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def run_id(url: str) -> str:
    """A run of five rollouts, two of which fail."""
    resources: Any = {"llm": LLM(endpoint="http://localhost/v1", model="tiny", api_key="secret")}
    trainer = Trainer(tracer="dummy", algorithm="baseline", store=url, initial_resources=resources)
    result = trainer.fit(agent, [0.5, 1.0, -1.0, 2.0, -2.0])
    run_sync(trainer.store.close())
    return result.run_id


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "_PAGE", 2)
    monkeypatch.setattr(export, "_ROWS", 2)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["runs", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("export", *arguments).splitlines()]


def test_all_is_one_line_a_rollout_with_attempts_reward_and_spans(url: str, run_id: str):
    found = lines(run_id, "--store", url)
    assert [one["input"] for one in found] == [0.5, 1.0, -1.0, 2.0, -2.0]
    assert [one["reward"] for one in found] == [0.5, 1.0, 0.25, 2.0, 0.25]
    assert {(one["schema"], one["type"], one["run_id"]) for one in found} == {(1, "rollout", run_id)}
    failed = found[2]
    assert failed["status"] == "failed"
    (attempt,) = failed["attempts"]
    assert (attempt["status"], attempt["reason"]) == ("failed", "agent_error")
    assert "negative task" in attempt["metadata"]["error"]
    assert [span["sequence_id"] for span in found[0]["spans"]] == [1, 2]
    assert {span["attempt_id"] for span in failed["spans"]} == {attempt["attempt_id"]}
    assert "secret" not in json.dumps(found)


ROLLOUT = {
    *("schema", "type", "run_id", "rollout_id", "status", "mode", "input", "reward", "resources_id"),
    *("start_time", "end_time", "config", "metadata", "idempotency_key", "attempts"),
}
ATTEMPT = {
    *("schema", "type", "run_id", "rollout_id", "attempt_id", "sequence_id", "status", "reason", "worker_id"),
    *("start_time", "end_time", "last_heartbeat_time", "metadata"),
}
SPAN = {
    *(
        "schema",
        "type",
        "run_id",
        "rollout_id",
        "attempt_id",
        "sequence_id",
        "trace_id",
        "span_id",
        "parent_id",
    ),
    *("name", "status", "status_description", "start_time", "end_time", "attributes", "events", "links"),
    "resource",
}
FIELDS = {"rollouts": ROLLOUT, "attempts": ATTEMPT, "spans": SPAN, "all": ROLLOUT | {"spans"}}


@pytest.mark.parametrize("what", FIELDS)
def test_the_fields_are_those_that_were_promised(what: str, url: str, run_id: str):
    """They are only ever added to; a change needs another schema number."""
    found = lines(run_id, "--store", url, "--what", what)
    assert len(found) > 4
    assert {frozenset(one) for one in found} == {frozenset(FIELDS[what])}


@pytest.mark.parametrize("what", FIELDS)
def test_parquet_holds_the_same_as_json_lines(what: str, url: str, run_id: str, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    target = tmp_path / "run.parquet"
    run("export", run_id, "--store", url, "--what", what, "--format", "parquet", "-o", str(target))
    rows = parquet.read_table(target).to_pylist()
    nested = {"input", "config", "metadata", "attempts", "spans", "attributes", "events", "links", "resource"}
    read = [
        {name: json.loads(value) if name in nested else value for name, value in row.items()} for row in rows
    ]
    assert read == lines(run_id, "--store", url, "--what", what)
    assert list(tmp_path.glob("*.part")) == []


def test_a_file_appears_when_it_is_whole(
    url: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "run.jsonl"
    run("export", run_id, "--store", url, "-o", str(target))
    assert target.read_text() == run("export", run_id, "--store", url)
    written = target.read_text()

    def breaks(*arguments: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(export, "find_final_reward", breaks)
    for form in ("jsonl", "parquet"):
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
        result = CliRunner().invoke(
            main, ["runs", "export", run_id, "--store", url, "--format", form, "-o", str(target)]
        )
        assert isinstance(result.exception, OSError)
    assert target.read_text() == written
    assert list(tmp_path.glob("*.part")) == []


def test_parquet_without_pyarrow_says_what_to_install(
    url: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(export, "import_module", missing)
    result = CliRunner().invoke(
        main, ["runs", "export", run_id, "--store", url, "--format", "parquet", "-o", str(tmp_path / "x")]
    )
    assert result.exit_code == 1
    assert "pip install 'lightning-core[parquet]'" in result.output
    assert importlib.import_module("json") is json


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run-unknown"], 1, "no run 'run-unknown' in this store"),
        (["run-unknown", "--format", "parquet"], 2, "give --output FILE"),
        (["run-unknown", "--what", "traces"], 2, "'traces' is not one of"),
    ],
)
def test_bad_input_is_answered_in_a_line(
    arguments: list[str], code: int, message: str, url: str, run_id: str
):
    result = CliRunner().invoke(main, ["runs", "export", *arguments, "--store", url])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_what_is_no_number_becomes_null(url: str):
    async def work() -> None:
        store = sqlite.SqliteLightningStore(url)
        await store.save_run(Run(run_id="run-1"))
        rollout = await store.start_rollout({"text": "\ud800"}, run_id="run-1")
        span = Span.from_attributes(
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            name="loss",
            attributes={"loss": float("nan")},
        )
        await store.add_span(span)
        await store.close()

    asyncio.run(work())
    (line,) = run("export", "run-1", "--store", url, "--what", "spans").splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["attributes"] == {"loss": None}
    (found,) = lines("run-1", "--store", url, "--what", "rollouts")
    assert found["input"] == {"text": "\ud800"}


# What the other commands say


def test_show_counts_failures_by_their_reason(url: str, run_id: str):
    text = run("show", run_id, "--store", url)
    assert "failures   2 agent_error" in text
    assert "failed: agent_error" in text
    assert "resumed" not in text


@pytest.mark.parametrize(("age", "orphaned"), [(1.0, False), (3600.0, True)])
def test_a_run_whose_process_is_gone_is_said_to_be_orphaned(age: float, orphaned: bool, url: str):
    owner = RunOwner(host="elsewhere", pid=1, token="t", heartbeat_time=time.time() - age)

    async def work() -> None:
        store = sqlite.SqliteLightningStore(url)
        await store.save_run(Run(run_id="run-1", owner=owner, resumed=2))
        await store.close()

    asyncio.run(work())
    assert run("list", "--store", url).splitlines()[1].split()[1:3] == [
        "orphaned" if orphaned else "running",
        "2",
    ]
    text = run("show", "--store", url)
    assert ("orphaned" in text, "resume='run-1'" in text) == (orphaned, orphaned)
    assert "resumed    2 times" in text
    assert json.loads(run("show", "--json", "--store", url))["orphaned"] is orphaned
    assert json.loads(run("list", "--json", "--store", url))[0]["orphaned"] is orphaned
