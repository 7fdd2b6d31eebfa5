"""Configuration files of ``lightning_cli``: read, layered, and written by ``--print-config``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lightning_core import LLM, PromptTemplate, Trainer
from lightning_core.plugin import PluginManager

Run = Callable[..., Any]
Refused = Callable[..., str]
Printed = Callable[..., str]

SETTINGS = {
    "trainer": {
        "n_runners": 3,
        "algorithm": {"type": "baseline", "n_epochs": 2},
        "tracer": "dummy",
        "hooks": [{"type": "cli_classes:Note", "text": "1e-3"}, "cli_classes:Note"],
        "initial_resources": {
            "llm": {"resource_type": "llm", "endpoint": "http://localhost/v1", "model": "m"}
        },
    }
}
AS_YAML = """
trainer:
  n-runners: 3
  algorithm: {type: baseline, n_epochs: 2}
  tracer: dummy
  hooks:
    - type: cli_classes:Note
      text: "1e-3"
    - cli_classes:Note
  initial_resources:
    llm: {resource_type: llm, endpoint: http://localhost/v1, model: m}
"""
AS_TOML = """
[trainer]
n_runners = 3
tracer = "dummy"
hooks = [{type = "cli_classes:Note", text = "1e-3"}, "cli_classes:Note"]

[trainer.algorithm]
type = "baseline"
n_epochs = 2

[trainer.initial_resources.llm]
resource_type = "llm"
endpoint = "http://localhost/v1"
model = "m"
"""


def check_settings(trainer: Trainer) -> None:
    assert trainer.n_runners == 3
    assert trainer.tracer_name == "dummy"
    algorithm: Any = trainer.algorithm
    assert algorithm.n_epochs == 2
    hooks: Any = trainer.hooks
    assert [hook.text for hook in hooks] == ["1e-3", ""]
    assert trainer.initial_resources == {"llm": LLM(endpoint="http://localhost/v1", model="m")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.yaml", AS_YAML),
        ("train.yml", AS_YAML),
        ("train.json", json.dumps(SETTINGS)),
        ("train.toml", AS_TOML),
    ],
)
def test_yaml_json_and_toml_say_the_same(
    run: Run, classes: ModuleType, only_core: PluginManager, name: str, text: str
) -> None:
    Path(name).write_text(text, encoding="utf-8")
    check_settings(run(Trainer, "--config", name))


def test_options_win_over_variables_these_over_files_and_later_files_over_earlier(
    run: Run, only_core: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("base.yaml").write_text(
        "trainer: {n_runners: 2, max_rollouts: 2, runner: {type: agent, concurrency: 2, poll_interval: 2, "
        "heartbeat_interval: 2}}",
        encoding="utf-8",
    )
    Path("more.yaml").write_text(
        "trainer: {max_rollouts: 3, runner: {poll_interval: 3, heartbeat_interval: 3}}", encoding="utf-8"
    )
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__N_RUNNERS", "")
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__RUNNER__HEARTBEAT_INTERVAL", "4")
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__RUNNER__POLL_INTERVAL", "4")
    trainer = run(
        Trainer, "--trainer.runner.poll_interval", "5", "--config", "base.yaml", "--config", "more.yaml"
    )
    assert (trainer.n_runners, trainer.max_rollouts) == (2, 3)
    runner = trainer.runner
    assert (runner.concurrency, runner.heartbeat_interval, runner.poll_interval) == (2, 4.0, 5.0)


def test_the_settings_of_a_part_go_when_another_one_is_chosen(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    Path("train.yaml").write_text("trainer: {algorithm: {type: baseline, n_epochs: 7}}", encoding="utf-8")
    assert run(Trainer, "--config", "train.yaml", "--algorithm", "baseline").algorithm.n_epochs == 7
    assert run(Trainer, "--config", "train.yaml", "--algorithm", "mock").algorithm.n_epochs == 1
    assert run(Trainer, "--config", "train.yaml", "--algorithm", "none").algorithm is None


def test_hooks_of_options_replace_those_of_files_unless_they_are_added(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    Path("train.yaml").write_text("trainer: {hooks: [{type: cli_classes:Note, text: a}]}", encoding="utf-8")
    new = '{"type": "cli_classes:Note", "text": "b"}'

    def texts(*arguments: str) -> list[str]:
        return [hook.text for hook in run(Trainer, "--config", "train.yaml", *arguments).hooks]

    assert texts() == ["a"]
    assert texts("--hooks", new) == ["b"]
    assert texts("--hooks+", new) == ["a", "b"]
    assert texts("--hooks.0.text", "c") == ["c"]
    assert texts("--hooks", "none") == []


def test_resources_of_files_and_options_are_merged(run: Run, only_core: PluginManager) -> None:
    Path("train.yaml").write_text(
        "trainer: {initial_resources: {p: {resource_type: prompt_template, template: '{a}', engine: jinja}}}",
        encoding="utf-8",
    )
    trainer = run(Trainer, "--config", "train.yaml", "--initial-resources.p.template", "{b}")
    assert trainer.initial_resources == {"p": PromptTemplate(template="{b}", engine="jinja")}


def test_values_of_a_class_are_read_from_a_file(run: Run, classes: ModuleType) -> None:
    Path("solver.yaml").write_text(
        "solver:\n  size: 3\n  color: BLUE\n  tags: [a, '1']\n  weights: {x: 1}\n  optimizer: {rate: 1e-3}\n"
        "  folder: here\n  mode: slow\n  limit: null\n  dry: true\n  anything: {a: [1]}\n  key: k\n",
        encoding="utf-8",
    )
    given = run(classes.Solver, "--config", "solver.yaml", "--weights.y", "2", "--tags+", "b").given
    assert given["color"] is classes.Color.BLUE
    assert given["tags"] == ["a", "1", "b"]
    assert given["weights"] == {"x": 1.0, "y": 2.0}
    assert given["optimizer"] == classes.Optimizer(rate=0.001)
    assert (given["folder"], given["mode"], given["dry"]) == (Path("here"), "slow", True)
    assert given["anything"] == {"a": [1]}
    assert given["key"].get_secret_value() == "k"


def test_the_section_may_be_left_out_where_there_is_one_class(run: Run, classes: ModuleType) -> None:
    Path("solver.toml").write_text("size = 3\n[optimizer]\nrate = 2\n", encoding="utf-8")
    given = run(classes.Solver, "--config", "solver.toml").given
    assert (given["size"], given["optimizer"].rate) == (3, 2.0)


def test_the_file_may_be_named_by_a_variable(
    run: Run, classes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("solver.json").write_text('{"solver": {"size": 3}}', encoding="utf-8")
    monkeypatch.setenv("LIGHTNING_CORE_CONFIG", "solver.json")
    assert run(classes.Solver).given["size"] == 3
    Path("other.json").write_text('{"solver": {"size": 4}}', encoding="utf-8")
    assert run(classes.Solver, "--config", "other.json").given["size"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "solver:\n  size: 1\n  sixe: 2\n",
            "x.yaml, line 3: there is no key 'solver.sixe'; did you mean 'size'? solver takes anything, color, dry, "
            "folder, key, limit, mode, optimizer, size, tags, weights",
        ),
        (
            "solver:\n  size: 1\n  optimizer:\n    rat: 2\n",
            "x.yaml, line 4: there is no key 'solver.optimizer.rat'; did you mean 'rate'? solver.optimizer takes rate, "
            "steps",
        ),
        (
            "solvr:\n  size: 1\n",
            "x.yaml, line 1: there is no key 'solvr'; did you mean 'solver'? the configuration takes limits, solver",
        ),
        ("solver:\n  size: big\n", "x.yaml, line 2: solver.size: expected int, got big"),
        ("solver:\n  size: null\n", "x.yaml, line 2: solver.size: a value is needed, not null"),
        ("solver: 3\n", "x.yaml, line 1: solver must hold keys and values, not int; it takes anything, color, dry, "
         "folder, key, limit, mode, optimizer, size, tags, weights"),
        (
            "solver:\n  size: 1\n  size: 2\n",
            "x.yaml, line 3: solver.size stands there already, in line 2",
        ),
        (
            "solver: [\n",
            "x.yaml: it is no YAML: expected the node content, but found '<stream end>' in line 2, column 1",
        ),
        ("- solver\n", "x.yaml: it must hold keys and their values, not a list"),
        (
            "",
            "solver.size is needed: give --solver.size, the variable LIGHTNING_CORE_SOLVER__SIZE, or a configuration "
            "file that has it. How large it is.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_message_with_line_and_key(
    refused: Refused, classes: ModuleType, text: str, message: str
) -> None:
    Path("x.yaml").write_text(text, encoding="utf-8")
    assert refused((classes.Limits, classes.Solver), "--config", "x.yaml") == message


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.yaml", None, "none.yaml: it cannot be read: No such file or directory"),
        ("x.json", "{", "x.json: it is no JSON: Expecting property name enclosed in double quotes"),
        ("x.toml", "a =", "x.toml: it is no TOML: "),
        ("x.txt", "", "x.txt: a configuration file ends in .json, .toml, .yaml, .yml, which says how to read it"),
        ("x.yaml", "solver: \udcff", "x.yaml: it is not encoded in UTF-8: "),
        ("x.json", '{\n"solver": {\n"sixe": 1}}', "x.json, line 3: there is no key 'solver.sixe'"),
        ("x.toml", "[solver]\nsixe = 1", "x.toml: there is no key 'solver.sixe'; did you mean 'size'?"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(
    refused: Refused, classes: ModuleType, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        Path(name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(classes.Solver, "--config", name).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer:\n  algorithm:\n    type: baseline\n    n_epoch: 2\n",
            "x.yaml, line 4: trainer.algorithm.n_epoch: unknown setting; did you mean 'n_epochs'? algorithm "
            "'baseline' takes n_epochs, max_attempts, timeout_seconds",
        ),
        (
            "trainer:\n  algorithm:\n    type: baselin\n",
            "x.yaml, line 3: trainer.algorithm: unknown algorithm 'baselin'; did you mean 'baseline'? installed "
            "algorithms: baseline, "
            "mock",
        ),
        (
            "trainer:\n  algorithm: 3\n",
            "x.yaml, line 2: trainer.algorithm must be a name, a URL, an import path, or a mapping with a type and "
            "settings, not int",
        ),
        (
            "trainer:\n  initial_resources:\n    p:\n      resource_type: llm\n      model: m\n      endpoint: 3\n",
            "x.yaml, line 6: trainer.initial_resources.p.endpoint: input should be a valid string",
        ),
        (
            "trainer:\n  hooks:\n    - nowhere:Hook\n",
            "x.yaml, line 3: trainer.hooks.0: 'nowhere:Hook' cannot be imported: ModuleNotFoundError: No module named "
            "'nowhere'; check the spelling, and that it can be found from here",
        ),
        (
            "trainer:\n  hooks:\n    - nobody\n",
            "x.yaml, line 3: trainer.hooks.0: unknown hook 'nobody'; installed hooks: none",
        ),
    ],
)
def test_a_wrong_part_of_a_file_is_named_with_line_and_key(
    refused: Refused, only_core: PluginManager, text: str, message: str
) -> None:
    Path("x.yaml").write_text(text, encoding="utf-8")
    assert refused(Trainer, "--config", "x.yaml") == message


# --print-config


def test_what_is_printed_can_be_read_again_and_is_then_printed_the_same(
    run: Run, printed: Printed, classes: ModuleType, only_core: PluginManager
) -> None:
    Path("train.yaml").write_text(AS_YAML, encoding="utf-8")
    text = printed(Trainer, "--config", "train.yaml", "--print-config")
    Path("again.yaml").write_text(text, encoding="utf-8")
    check_settings(run(Trainer, "--config", "again.yaml"))
    assert printed(Trainer, "--config", "again.yaml", "--print-config") == text


def test_values_of_every_type_are_printed_and_read_again(
    run: Run, printed: Printed, classes: ModuleType
) -> None:
    arguments = [
        *("--size", "3", "--color", "BLUE", "--tags", "['1', 'no', '1e-3']", "--weights.x", "1"),
        *("--optimizer.rate", "1e-3", "--folder", "a b", "--limit", "2", "--dry"),
        *("--anything", '"two\\nlines: {x}"', "--mode", "slow"),
    ]
    text = printed(classes.Solver, *arguments, "--print-config")
    Path("again.yaml").write_text(text, encoding="utf-8")
    assert run(classes.Solver, "--config", "again.yaml").given == run(classes.Solver, *arguments).given


def test_everything_that_could_be_set_is_a_comment_with_its_meaning_and_default(
    printed: Printed, only_core: PluginManager
) -> None:
    text = printed(Trainer, "--print-config", "--trainer.runner.concurrency", "2")
    assert yaml.safe_load(text) == {"trainer": {"runner": {"type": "agent", "concurrency": 2}}}
    assert "  # How many runners work in parallel.\n  # n_runners: null\n" in text
    assert "  # Installed: memory.\n  # store: memory\n" in text
    assert "    # Rollouts that one runner runs at the same time.\n    concurrency: 2\n" in text
    assert "    # poll_interval: 5.0\n" in text
    assert "n_workers" not in text, "deprecated"


def test_a_configuration_without_what_is_needed_says_so_in_its_place(
    printed: Printed, classes: ModuleType
) -> None:
    text = printed(classes.Solver, "--print-config", "--solver.mode", "slow")
    assert "  # How large it is.\n  # size: is needed\n" in text
    assert yaml.safe_load(text) == {"solver": {"mode": "slow"}}


def test_keys_are_never_printed(
    printed: Printed,
    refused: Refused,
    classes: ModuleType,
    only_core: PluginManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__ENGINE__API_KEY", "hush-variable")
    llm = '{"resource_type": "llm", "endpoint": "e", "model": "m", "api_key": "hush"}'
    arguments = [
        *("--trainer.engine", "endpoint", "--trainer.engine.model", "m"),
        *("--trainer.initial_resources.llm", llm),
        *("--trainer.hooks", '[{"type": "cli_classes:Note", "text": {"password": "hush", "shown": "yes"}}]'),
    ]  # fmt: skip
    text = printed(Trainer, *arguments, "--print-config")
    assert "hush" not in text
    assert (
        "# api_key is a secret, and never written here. Give it as LIGHTNING_CORE_TRAINER__ENGINE__API_KEY."
        in text
    )
    assert "shown: 'yes'" in text
    assert yaml.safe_load(text)["trainer"]["engine"] == {"type": "endpoint", "model": "m"}
    assert "hush" not in printed(Trainer, *arguments, "--help")
    assert "hush" not in printed(classes.Solver, "--size", "1", "--key", "hush", "--print-config")
    assert "hush" not in printed(classes.Door, "--password", "hush", "--print-config")
    assert "hush" not in refused(Trainer, *arguments, "--trainer.engine.timeout", "never")


def test_user_and_password_of_a_url_are_left_out(printed: Printed) -> None:
    pytest.importorskip("lightning_store_postgres", reason="lightning-store-postgres is not installed")
    text = printed(Trainer, "--store", "postgresql://me:hush@host/db", "--print-config", "--tracer", "dummy")
    assert "hush" not in text
    assert "type: postgresql://host/db" in text
