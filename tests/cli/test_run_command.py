"""``lightning-core run`` runs a whole training that a file describes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from lightning_core.cli import main
from lightning_core.plugin import PluginManager

AGENTS = """
import sys
import threading

from lightning_core import LitAgent, rollout

@rollout
def scored(task, prompt_template):
    return float(len(prompt_template.format(task=task)))

@rollout
def model(task, llm):
    return float(llm.model == "m")

class Whole(LitAgent):
    def rollout(self, task, resources, rollout):
        return 1.0

@rollout
def stuck(task, resources):
    print("started", flush=True)
    threading.Event().wait()

@rollout
def broken(task, resources):
    raise ValueError("it is broken")

tasks = ["a", "bb"]

def plain(task):
    return 1.0
"""
CONFIG = """
agent: my_agents:scored
train_data: tasks.jsonl
val_data: [dddd]
resources:
  prompt_template: {resource_type: prompt_template, template: "{task}"}
trainer:
  algorithm: baseline
  tracer: dummy
  n_runners: 2
"""
VARIABLES = ("AGENT", "CONFIG", "RESUME", "STORE", "TRAIN_DATA", "TRAINER__STORE")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with agents, which is not on the path, and a configuration."""
    (tmp_path / "my_agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "train.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "tasks.jsonl").write_text('"a"\n"bb"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    for name in VARIABLES:
        monkeypatch.delenv(f"LIGHTNING_CORE_{name}", raising=False)
    return tmp_path


@pytest.fixture
def run(folder: Path, only_core: PluginManager) -> Callable[..., Result]:
    """Runs the command with the core's own parts."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["run", *arguments])

    return run


Run = Callable[..., Result]


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert result.exception is None
    return result.output


def test_a_training_runs_as_the_file_says_and_its_outcome_is_printed(run: Run) -> None:
    lines = output(run("train.yaml")).splitlines()
    assert lines[0].startswith("run        run-")
    assert lines[1] == "status     succeeded"
    assert lines[3] == "rollouts   3 succeeded"
    assert (
        "metrics    mode=train, epoch=0, rollouts=2, succeeded=2, spans=2, rewards=2, mean_reward=1.5"
        in lines
    )
    assert (
        "metrics    mode=val, epoch=0, rollouts=1, succeeded=1, spans=1, rewards=1, mean_reward=4.0" in lines
    )
    assert "runs show" not in lines[-1], "a store that forgets has nothing to show"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.algorithm.n-epochs", "2"], "rollouts   5 succeeded"),
        (["--resources.prompt_template.template", "{task}!"], "mean_reward=2.5"),
        (["--train-data", "my_agents:tasks", "--val_data", "none"], "rollouts   2 succeeded"),
        (["--train_data", "[x, y, z]"], "rollouts   4 succeeded"),
        (["--agent", "my_agents:Whole"], "mean_reward=1.0"),
    ],
)
def test_options_override_the_file(run: Run, arguments: list[str], said: str) -> None:
    assert said in output(run("train.yaml", *arguments))


def test_variables_override_the_file_and_options_override_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__ALGORITHM__N_EPOCHS", "2")
    assert "rollouts   5 succeeded" in output(run("train.yaml"))
    assert "rollouts   7 succeeded" in output(run("train.yaml", "--trainer.algorithm.n_epochs", "3"))


def test_everything_may_come_from_options_and_variables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_AGENT", "my_agents:model")
    monkeypatch.setenv(
        "LIGHTNING_CORE_RESOURCES__LLM", '{"resource_type": "llm", "endpoint": "e", "model": "x"}'
    )
    text = output(
        run(
            *("--train_data", "[1]", "--trainer.algorithm", "mock", "--trainer.tracer", "dummy"),
            *("--resources.llm.model", "m"),
        )
    )
    assert "mean_reward=1.0" in text


def test_the_file_may_be_toml_and_the_trainer_may_have_resources_too(run: Run, folder: Path) -> None:
    (folder / "train.toml").write_text(
        'agent = "my_agents:scored"\ntrain_data = [1, 22]\n[trainer]\nalgorithm = "baseline"\ntracer = "dummy"\n'
        '[trainer.initial_resources.prompt_template]\nresource_type = "prompt_template"\ntemplate = "{task}"\n'
        '[resources.other]\nresource_type = "prompt_template"\ntemplate = "x"\n',
        encoding="utf-8",
    )
    assert "mean_reward=1.5" in output(run("train.toml"))
    text = run("train.toml", "train.yaml").output
    assert text == (
        "lightning-core run: error: prompt_template is both in resources and in trainer.initial_resources; leave one "
        "of them out\n"
    )


def test_a_dry_run_needs_no_algorithm(run: Run) -> None:
    assert "3 succeeded" in output(run("--trainer.algorithm", "none", "--trainer.dev", "train.yaml"))


def test_a_run_whose_runners_are_done_before_it_is_exits_with_1(run: Run) -> None:
    result = run("train.yaml", "--trainer.max_rollouts", "1", "--trainer.n_runners", "1")
    assert result.exit_code == 1
    assert "status     cancelled" in result.output


def test_a_training_that_fails_exits_with_1_and_no_traceback(run: Run) -> None:
    result = run("train.yaml", "--trainer.algorithm", "none")
    assert result.exit_code == 1
    assert "Error: Trainer has no algorithm" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--agent", "my_agents:score"],
            "'my_agents:score' cannot be imported: .*did you mean my_agents:scored?",
        ),
        (["--agent", "my_agents:plain"], "'my_agents:plain' is a function, not an agent: put @rollout"),
        (
            ["--train-data", "task.jsonl"],
            "train_data: task.jsonl cannot be read: .*did you mean tasks.jsonl?",
        ),
        (["--val_data", "my_agents:task"], "val_data: 'my_agents:task' cannot be imported"),
        (["--trainer.stor", "x"], "--trainer.stor: there is no such option; did you mean --trainer.store?"),
        (["--n_runners", "2"], "--n_runners: there is no such option; did you mean --trainer.n_runners?"),
        (["--trainer.tracer", "dumy"], "--trainer.tracer: unknown tracer 'dumy'; did you mean 'dummy'?"),
        (["other.yaml"], "other.yaml: it cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_configuration_exits_with_2_and_one_message(
    run: Run, arguments: list[str], message: str
) -> None:
    result = run("train.yaml", *arguments)
    assert result.exit_code == 2
    assert re.match(f"lightning-core run: error: {message}".replace("?", r"\?"), result.output)
    assert len(result.output.splitlines()) == 1


def test_without_anything_it_says_what_is_needed(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert (
        "agent is needed: give --agent, the variable LIGHTNING_CORE_AGENT, or a configuration"
        in result.output
    )


def test_help_lists_all_options_and_what_is_installed(run: Run) -> None:
    text = " ".join(output(run("--help")).split())
    assert text.startswith("usage: lightning-core run CONFIG ... [OPTIONS]")
    assert "--agent AGENT The agent: module:name, looked for in the working folder too." in text
    assert "--resources RESOURCES" in text
    assert "--trainer.store NAME" in text
    assert "installed algorithms: baseline" in text


def test_what_is_printed_runs_in_the_same_way(run: Run, folder: Path) -> None:
    text = output(run("train.yaml", "--print-config", "--trainer.algorithm.n-epochs", "2"))
    (folder / "again.yaml").write_text(text, encoding="utf-8")
    assert output(run("again.yaml", "--print-config")) == text
    assert yaml.safe_load(text)["agent"] == "my_agents:scored"
    assert "rollouts   5 succeeded" in output(run("again.yaml"))


def test_a_complete_configuration_is_printed_without_a_file(run: Run) -> None:
    text = output(run("--print-config"))
    assert "# agent: is needed" in text
    assert yaml.safe_load(text) == {"trainer": None}
    for name in ("train_data", "val_data", "resources", "resume"):
        assert f"\n# {name}: null\n" in text
    for name in (
        "store: memory",
        "n_runners: null",
        "hooks: []",
        "algorithm: null",
        "  # poll_interval: 5.0",
    ):
        assert f"\n  # {name}\n" in text


# As programs


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightning_core", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_run_in_a_durable_store_can_be_listed_and_resumed(folder: Path) -> None:
    pytest.importorskip("lightning_store_sqlite", reason="lightning-store-sqlite is not installed")
    store = ("--trainer.store", "sqlite", "--trainer.store.path", "runs.db")
    done = program(folder, "run", "train.yaml", *store)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[1]
    *_, hint = done.stdout.splitlines()
    assert (
        hint == f"To see this run again: lightning-core runs show {run_id} --store sqlite:///{folder}/runs.db"
    )
    listed = json.loads(program(folder, "runs", "list", "--store", "sqlite:///runs.db", "--json").stdout)
    assert [(run["run_id"], run["status"], run["settings"]["algorithm"]) for run in listed] == [
        (run_id, "succeeded", "baseline")
    ]
    again = program(folder, "run", "train.yaml", *store, "--resume", run_id)
    assert again.returncode == 1
    assert again.stderr == f"Error: run {run_id} has succeeded, so there is nothing to resume\n"
    assert program(folder, "run", "train.yaml", *store, "--resume", "auto").returncode == 0
    assert program(folder, "run", "train.yaml", *store, "--resume", "0").returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_ends_it_with_130_and_says_how_to_go_on(folder: Path) -> None:
    pytest.importorskip("lightning_store_sqlite", reason="lightning-store-sqlite is not installed")
    arguments: list[Any] = [sys.executable, "-m", "lightning_core", "run", "train.yaml"]
    arguments += ["--agent", "my_agents:stuck", "--trainer.store", "sqlite:///runs.db"]
    arguments += ["--trainer.strategy.graceful_seconds", "0", "--trainer.strategy.cancel_seconds", "0"]
    # Two at once could write into each other's line.
    arguments += ["--trainer.n_runners", "1"]
    process = subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "to go on from there: resume='run-" in errors
    assert "Traceback" not in errors
