"""``lightning-core doctor run`` checks one rollout of an agent that it imports, and its exit code tells."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lightning_core.cli import main
from lightning_core.cli.doctor_run import first_task
from lightning_core.cli.loading import load_agent
from lightning_core.errors import ConfigurationError
from lightning_core.plugin import PluginManager
from lightning_core.trainer.check.watch import SDKS

AGENTS = """
from lightning_core import LitAgent, rollout
from lightning_core.adapter import TraceAdapter

@rollout
def good(task, resources):
    print("the task is", task)
    return float(task == {"question": 1})

@rollout
def without_reward(task, resources):
    return None

@rollout
async def stuck(task, resources):
    import asyncio
    await asyncio.Event().wait()

@rollout
def model(task, llm):
    assert llm.model == "m", llm
    return 1.0

class Whole(LitAgent):
    def rollout(self, task, resources, rollout):
        return 1.0

class Fixed(TraceAdapter):
    def __init__(self, number=1):
        self.number = number

    def adapt(self, source, /):
        return [0] * self.number

def plain(task):
    return 1.0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_core: PluginManager) -> Path:
    """A working folder with a module of agents, which is not on the path."""
    (tmp_path / "my_agents.py").write_text(AGENTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    for module in ("my_agents", *SDKS):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def run(agent: str, data: str = '{"question": 1}', *options: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "run", agent, "--data", data, "--tracer", "dummy", *options])


def test_a_good_agent_passes() -> None:
    result = run("my_agents:good")
    assert result.exit_code == 0, result.output
    assert "one rollout of good: 1 warning" in result.output
    assert "  ok:      reward: 1" in result.output


def test_a_problem_fails_the_command_and_comes_with_its_fix() -> None:
    result = run("my_agents:without_reward")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("  problem: reward"))
    assert lines[place + 1].startswith("      fix: ")


def test_what_an_algorithm_does_not_need_is_no_problem() -> None:
    assert run("my_agents:without_reward", "1", "--algorithm", "baseline").exit_code == 0


def test_json_is_all_that_is_printed_there(capsys: pytest.CaptureFixture[str]) -> None:
    # click's own runner keeps the two streams apart only from 8.2 on.
    main(["doctor", "run", "my_agents:good", "--data", '{"question": 1}', "--json"], standalone_mode=False)
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["ok"], report["status"], report["reward"]) == (True, "succeeded", 1.0)
    assert {"name", "level", "text", "fix", "details"} == set(report["points"][0])
    assert "the task is" in printed.err
    main(["doctor", "run", "my_agents:without_reward", "--data", "1", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_parts_with_settings_are_given_as_json() -> None:
    for number, said in ((2, "2 training samples"), (0, "0 training samples")):
        adapter = json.dumps({"type": "my_agents:Fixed", "number": number})
        assert said in run("my_agents:good", "1", "--adapter", adapter).output


def test_json_that_is_none_names_its_option() -> None:
    result = run("my_agents:good", "1", "--adapter", "{broken")
    assert result.exit_code == 2
    assert "--adapter" in result.output


def test_a_part_that_is_not_installed_is_an_error_without_traceback() -> None:
    result = CliRunner().invoke(main, ["doctor", "run", "my_agents:good", "--data", "1", "--tracer", "dumy"])
    assert result.exit_code == 1
    assert "did you mean 'dummy'" in result.output
    assert "Traceback" not in result.output


def test_a_time_limit() -> None:
    result = run("my_agents:stuck", "1", "--timeout", "0.05")
    assert result.exit_code == 1
    assert "timeout_seconds=0.05" in result.output


def test_an_endpoint_that_does_not_answer_is_a_problem() -> None:
    result = run("my_agents:model", "1", "--endpoint", "http://127.0.0.1:1/v1", "--model", "m")
    assert result.exit_code == 1
    assert "problem: set-up: the rollout could not be run: EngineError" in result.output


def test_doctor_without_a_subcommand_still_checks_the_installation() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert "Defaults of Trainer" in result.output
    assert "Defaults of Trainer" not in run("my_agents:good").output


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_agents", "not of the form module:name"),
        ("my_agents:nowhere", "cannot be imported: AttributeError"),
        ("not_there:agent", "cannot be imported: ModuleNotFoundError.*found from here"),
        ("my_agents:plain", "is a function, not an agent: put @rollout"),
    ],
)
def test_an_agent_that_is_none(path: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(ConfigurationError, match=message):
        load_agent(path)


def test_a_class_of_agents_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert type(load_agent("my_agents:Whole")).__name__ == "Whole"


@pytest.mark.parametrize(
    ("name", "text", "task"),
    [
        ("tasks.json", '[{"question": 1}, {"question": 2}]', {"question": 1}),
        ("tasks.json", '{"question": 1}', {"question": 1}),
        ("tasks.jsonl", '\n{"question": 1}\n{"question": 2}\n', {"question": 1}),
        ("tasks.jsonl", '"one"\n"two"\n', "one"),
    ],
)
def test_the_first_task_of_a_file(folder: Path, name: str, text: str, task: Any) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    assert first_task(name) == task


@pytest.mark.parametrize(
    ("data", "task"), [('{"a": [1]}', {"a": [1]}), ("[1, 2]", [1, 2]), ('"text"', "text"), ("x" * 5000, None)]
)
def test_a_task_in_the_command_line(data: str, task: Any) -> None:
    if task is None:
        with pytest.raises(click.BadParameter, match="neither a file nor JSON"):
            first_task(data)
    else:
        assert first_task(data) == task


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("[]", "is empty"), ("no json", "holds no JSON")]
)
def test_a_file_without_tasks(folder: Path, text: str, message: str) -> None:
    (folder / "tasks.json").write_text(text, encoding="utf-8")
    with pytest.raises(click.BadParameter, match=message):
        first_task("tasks.json")
