"""``lightning-core runs``: stored runs, read again from their store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightning_core import LLM, Trainer, TrainingResult, algo, rollout
from lightning_core.cli import main

pytest.importorskip("lightning_store_sqlite", reason="stored runs need a durable store, which is a plugin")


@rollout
async def agent(task: float, llm: LLM) -> float:
    if task < 0:
        raise ValueError("negative task")
    return task


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


def fit(store: str, **settings: object) -> TrainingResult:
    llm = LLM(endpoint="http://localhost/v1", model="tiny", api_key="secret")
    trainer = Trainer(
        **{  # type: ignore[arg-type]
            "tracer": "dummy",
            "algorithm": "baseline",
            "store": store,
            "initial_resources": {"llm": llm},
            **settings,
        }
    )
    return trainer.fit(agent, [0.5, 1.0, -1.0])


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["runs", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_each_run_with_its_counts(store: str):
    first, second = fit(store), fit(store)
    lines = run("list", "--store", store).splitlines()
    assert [line.split()[0] for line in lines] == ["run", first.run_id, second.run_id]
    assert "1 failed, 2 succeeded" in lines[1]


def test_show_prints_the_newest_run_again_from_its_file(store: str):
    fit(store)
    newest = fit(store)
    text = run("show", "--store", store)
    assert newest.run_id in text
    assert "mean_reward=0.75" in text
    assert "negative task" in text
    assert "baseline" in text


def test_show_prints_best_resources_without_keys_and_reports_of_algorithms(store: str):
    @algo
    async def best(algorithm: object, initial_resources: object) -> object:
        algorithm.log_metrics(event="result", report="name  mean\na     0.5", rows=[1, 2])  # type: ignore[attr-defined]
        return initial_resources

    result = fit(store, algorithm=best)
    text = run("show", result.run_id, "--store", store)
    assert "model: tiny" in text
    assert "secret" not in text
    assert "\nname  mean\na     0.5\n" in text
    assert "rows" not in text


def test_json_holds_everything(store: str):
    result = fit(store)
    shown = json.loads(run("show", "--json", "--store", store))
    assert shown["result"]["metrics"] == result.metrics
    assert [one["run_id"] for one in json.loads(run("list", "--json", "--store", store))] == [result.run_id]


def test_the_store_may_come_from_the_environment(store: str, monkeypatch: pytest.MonkeyPatch):
    result = fit(store)
    monkeypatch.setenv("LIGHTNING_CORE_STORE", store)
    assert result.run_id in run("list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "run-unknown"], "no run 'run-unknown'"),
        (["show", "--store", "memory"], "keeps nothing beyond its process"),
        (["show", "--store", "sqlit:///x"], "did you mean 'sqlite'"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    store: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    fit(store)
    monkeypatch.setenv("LIGHTNING_CORE_STORE", store)
    result = CliRunner().invoke(main, ["runs", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_looking_does_not_make_a_store(tmp_path: Path):
    result = CliRunner().invoke(main, ["runs", "list", "--store", f"sqlite:///{tmp_path}/none.db"])
    assert result.exit_code == 1
    assert "none.db" in result.output
    assert list(tmp_path.iterdir()) == []
