"""``lightning_cli`` makes objects as the arguments of the process, its variables and files say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr

from lightning_core import InMemoryLightningStore, PromptTemplate, Trainer
from lightning_core.config import lightning_cli
from lightning_core.errors import ConfigurationError
from lightning_core.plugin import PluginManager
from lightning_core.tracer import DummyTracer

Run = Callable[..., Any]
Refused = Callable[..., str]
Printed = Callable[..., str]


# Values of constructors


def test_every_type_is_read_as_its_hint_says(run: Run, classes: ModuleType) -> None:
    solver = run(
        classes.Solver,
        *("--solver.size", "3"),
        *("--solver.color", "BLUE"),
        *("--solver.tags", "[a, b]"),
        *("--solver.weights", '{"x": 1, "y": 0.5}'),
        *("--solver.optimizer.rate", "1e-3"),
        *("--solver.folder", "some/where"),
        *("--solver.mode", "slow"),
        *("--solver.limit", "2.5"),
        *("--solver.anything", "[1, {a: b}]"),
        *("--solver.key", "open sesame"),
        "--solver.dry",
    )
    assert solver.given == {
        "size": 3,
        "color": classes.Color.BLUE,
        "tags": ["a", "b"],
        "weights": {"x": 1.0, "y": 0.5},
        "optimizer": classes.Optimizer(rate=0.001, steps=3),
        "folder": Path("some/where"),
        "mode": "slow",
        "limit": 2.5,
        "dry": True,
        "anything": [1, {"a": "b"}],
        "key": SecretStr("open sesame"),
    }


def test_what_is_not_given_has_its_default(run: Run, classes: ModuleType) -> None:
    given = run(classes.Solver, "--solver.size=3").given
    assert given["color"] is classes.Color.RED
    assert given["tags"] == ["plain"]
    assert given["optimizer"] == classes.Optimizer()
    assert given["dry"] is False
    assert given["key"] is None


@pytest.mark.parametrize("option", ["--solver.size", "--size"])
def test_the_class_may_be_left_out_where_there_is_one(run: Run, classes: ModuleType, option: str) -> None:
    assert run(classes.Solver, option, "3").given["size"] == 3


@pytest.mark.parametrize("option", ["--trainer.n_runners", "--trainer.n-runners", "--n-runners"])
def test_hyphens_do_as_well_as_underscores(run: Run, only_core: PluginManager, option: str) -> None:
    assert run(Trainer, option, "3").n_runners == 3


def test_one_class_gives_its_object_and_several_a_tuple_in_order(run: Run, classes: ModuleType) -> None:
    limits, solver = run((classes.Limits, classes.Solver), "--solver.size", "3", "--limits.most", "7")
    assert (limits.most, solver.given["size"]) == (7, 3)
    assert isinstance(run(classes.Limits), classes.Limits)


def test_the_class_may_not_be_left_out_where_there_are_several(refused: Refused, classes: ModuleType) -> None:
    message = refused((classes.Limits, classes.Solver), "--size", "3")
    assert message == "--size: there is no such option; did you mean --solver.size? --help lists all of them"


def test_the_last_of_several_values_wins_and_a_plus_adds_to_a_list(run: Run, classes: ModuleType) -> None:
    given = run(classes.Solver, "--size", "1", "--size", "2", "--tags+", "more", "--tags+", "most").given
    assert given["size"] == 2
    assert given["tags"] == ["plain", "more", "most"]


def test_keys_of_a_mapping_are_options_too(run: Run, classes: ModuleType) -> None:
    given = run(classes.Solver, "--size", "1", "--weights.x", "2", "--weights.y", "3").given
    assert given["weights"] == {"x": 2.0, "y": 3.0}


@pytest.mark.parametrize(("arguments", "dry"), [(["--dry"], True), (["--dry", "false"], False), ([], False)])
def test_a_switch_needs_no_value(run: Run, classes: ModuleType, arguments: list[str], dry: bool) -> None:
    assert run(classes.Solver, *arguments, "--size", "1").given["dry"] is dry


@pytest.mark.parametrize("text", ["null", "None", "~", ""])
def test_none_is_none_where_there_may_be_nothing(run: Run, classes: ModuleType, text: str) -> None:
    given = run(classes.Solver, "--size", "1", "--limit", "3", "--limit", text, "--folder", text).given
    assert (given["limit"], given["folder"]) == (None, None)


def test_a_model_checks_its_own_limits(refused: Refused, classes: ModuleType) -> None:
    message = refused(classes.Limits, "--most", "0")
    assert message == "--most: limits.most: input should be greater than or equal to 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver.size", "big"], "--solver.size: expected int, got big"),
        (["--size", "big"], "--size: solver.size: expected int, got big"),
        (
            ["--size", "1", "--color", "GREEN"],
            "--color: solver.color: expected a member of Color: {RED,BLUE}, got GREEN",
        ),
        (
            ["--size", "1", "--solver.limit", "never"],
            "--solver.limit: expected float | none, got never",
        ),
        (
            ["--size", "1", "--solver.optimizer.rate", "fast"],
            "--solver.optimizer.rate: expected float, got fast",
        ),
        (
            ["--size", "1", "--solver.optimizer.rat", "1"],
            "--solver.optimizer.rat: there is no such option; did you mean --solver.optimizer.rate? "
            "--help lists all of them",
        ),
        (
            ["--sise", "1"],
            "--sise: there is no such option; did you mean --solver.size? --help lists all of them",
        ),
        (["--size"], "--size needs a value"),
        (["--size", "1", "extra"], "'extra' belongs to no option; options begin with --"),
        (
            [],
            "solver.size is needed: give --solver.size, the variable LIGHTNING_CORE_SOLVER__SIZE, or a configuration "
            "file that has it. How large it is.",
        ),
    ],
)
def test_wrong_usage_is_one_message_that_says_what_and_where(
    refused: Refused, classes: ModuleType, arguments: list[str], message: str
) -> None:
    assert refused(classes.Solver, *arguments) == message


def test_two_classes_of_one_name_are_refused(classes: ModuleType) -> None:
    with pytest.raises(ConfigurationError, match="two classes called solver"):
        lightning_cli(classes.Solver, classes.Solver)
    with pytest.raises(ConfigurationError, match="at least one class"):
        lightning_cli()


def test_an_object_of_another_class_is_made_from_its_own_options(run: Run, classes: ModuleType) -> None:
    scheduled = run(
        classes.Scheduled, "--schedule", "cli_classes.Falling", "--schedule.by", "3", "--offset", "-1"
    )
    assert type(scheduled.schedule) is classes.Falling
    assert (scheduled.schedule.by, scheduled.schedule.start, scheduled.offset) == (3, 2.0, -1)
    Path("x.yaml").write_text(
        "scheduled: {schedule: {class_path: cli_classes.Falling, init_args: {by: 4}}}", encoding="utf-8"
    )
    scheduled = run(classes.Scheduled, "--config", "x.yaml", "--scheduled.schedule.start", "5")
    assert (scheduled.schedule.by, scheduled.schedule.start) == (4, 5.0)


def test_a_class_may_be_given_as_a_whole(
    run: Run, refused: Refused, classes: ModuleType, only_core: PluginManager
) -> None:
    trainer = run(
        Trainer,
        "--trainer",
        '{"n_runners": 2, "algorithm": {"type": "mock", "n_epochs": 3}}',
        "--trainer.dev",
    )
    assert (trainer.n_runners, trainer.algorithm.n_epochs, trainer.is_dev) == (2, 3, True)
    message = refused(classes.Solver, "--solver", "{sise: 1}")
    assert message.startswith("--solver: there is no key 'solver.sise'; did you mean 'size'? solver takes ")
    assert refused(classes.Limits, "--limits", "3") == (
        "--limits takes keys and values, such as those of --limits.most"
    )


def test_an_error_of_ours_in_a_constructor_is_a_message_too(refused: Refused, classes: ModuleType) -> None:
    assert refused(classes.Door, "--password", "please") == "the door stays closed"


# Parts


def test_a_part_is_chosen_by_name_with_its_own_settings(run: Run, only_core: PluginManager) -> None:
    trainer = run(
        Trainer,
        *("--trainer.runner", "agent", "--trainer.runner.concurrency", "3"),
        *("--trainer.algorithm", "baseline", "--trainer.algorithm.n-epochs", "2"),
    )
    assert trainer.runner.concurrency == 3
    assert trainer.algorithm.n_epochs == 2


def test_the_order_of_a_part_and_its_settings_does_not_matter(run: Run, only_core: PluginManager) -> None:
    trainer = run(Trainer, "--trainer.algorithm.n_epochs", "2", "--trainer.algorithm", "baseline")
    assert trainer.algorithm.n_epochs == 2


def test_settings_without_a_name_are_those_of_the_default(run: Run, only_core: PluginManager) -> None:
    assert run(Trainer, "--trainer.runner.poll-interval", "0.5").runner.poll_interval == 0.5


def test_a_part_may_be_json_an_import_path_or_none(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    trainer = run(
        Trainer,
        *("--trainer.algorithm", '{"type": "baseline", "n_epochs": 4}'),
        *("--trainer.tracer", "lightning_core.tracer:DummyTracer"),
        *("--trainer.engine", "none"),
        *("--trainer.hooks", "cli_classes:Note", "--trainer.hooks.0.text", "[hello]"),
    )
    assert trainer.algorithm.n_epochs == 4
    assert isinstance(trainer.tracer, DummyTracer)
    assert trainer.engine is None
    assert [hook.text for hook in trainer.hooks] == [["hello"]]


def test_a_proxy_is_a_part_though_there_is_no_class_of_proxies(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    trainer = run(Trainer, "--trainer.llm-proxy", "cli_classes:Proxy", "--trainer.llm-proxy.port", "3")
    assert trainer.llm_proxy.port == 3


def test_hooks_are_a_list_to_which_a_plus_adds(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    trainer = run(
        Trainer,
        *("--trainer.hooks", '[{"type": "cli_classes:Note", "text": "one"}]'),
        *("--trainer.hooks+", "cli_classes:Note", "--trainer.hooks.1.text", "two"),
    )
    assert [hook.text for hook in trainer.hooks] == ["one", "two"]


def test_the_settings_of_a_store_of_a_plugin(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lightning_store_sqlite", reason="lightning-store-sqlite is not installed")
    pytest.importorskip("lightning_tracer_otel", reason="lightning-tracer-otel is not installed")
    trainer = run(
        Trainer,
        *("--trainer.store", "sqlite", "--trainer.store.path", "runs.db"),
        *("--trainer.tracer", "otel", "--trainer.tracer.instrument", "[]"),
    )
    assert trainer.store.location == f"sqlite:///{tmp_path}/runs.db"
    assert trainer.tracer_name == "otel"
    other = run(Trainer, "--store", "sqlite:///other.db", "--store.busy_timeout", "3", "--tracer", "dummy")
    assert other.store.location == f"sqlite:///{tmp_path}/other.db"


def test_a_switch_of_a_plugin_needs_no_value(run: Run, refused: Refused) -> None:
    pytest.importorskip("lightning_store_sqlite", reason="lightning-store-sqlite is not installed")
    arguments = ("--store", "sqlite", "--store.path", "new.db", "--store.must_exist")
    assert "new.db" in refused(Trainer, *arguments, "--tracer", "dummy")
    run(Trainer, *arguments, "false", "--tracer", "dummy")


def test_parts_that_are_wanted_themselves_are_named_with_their_place_where_they_are_wrong(
    refused: Refused, classes: ModuleType, only_core: PluginManager
) -> None:
    assert refused(classes.Recorder, "--store", "builtins:dict") == (
        "--store: recorder.store: the class dict does not inherit from LightningStore"
    )


def test_a_class_that_wants_the_parts_themselves_gets_them(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    recorder = run(
        classes.Recorder,
        *("--recorder.store", "memory", "--recorder.tracer", "dummy"),
        *("--recorder.hooks", "cli_classes:Note", "--recorder.algorithm", "baseline"),
    )
    assert isinstance(recorder.store, InMemoryLightningStore)
    assert isinstance(recorder.tracer, DummyTracer)
    assert [type(hook).__name__ for hook in recorder.hooks] == ["Note"]
    assert type(recorder.algorithm).__name__ == "Baseline"
    assert run(classes.Recorder, "--store", "memory", "--tracer", "none").tracer is None


def test_a_class_that_hands_its_keywords_on_has_the_options_of_its_base(
    run: Run, classes: ModuleType, only_core: PluginManager
) -> None:
    trainer = run(
        classes.OwnTrainer, "--owntrainer.rounds", "2", "--owntrainer.algorithm", "mock", "--n-runners", "2"
    )
    assert (trainer.rounds, trainer.n_runners) == (2, 2)
    assert type(trainer.algorithm).__name__ == "Baseline"


def test_resources_are_read_by_their_kind(run: Run, only_core: PluginManager) -> None:
    resources = {"prompt": {"resource_type": "prompt_template", "template": "{question}"}}
    trainer = run(Trainer, "--initial-resources", json.dumps(resources))
    assert trainer.initial_resources == {"prompt": PromptTemplate(template="{question}")}
    changed = run(
        Trainer,
        *("--trainer.initial_resources", json.dumps(resources)),
        *("--trainer.initial_resources.prompt.template", "{answer}"),
        *("--trainer.initial_resources.llm.resource_type", "llm"),
        *("--trainer.initial_resources.llm.model", "8"),
        *("--trainer.initial_resources.llm.endpoint", "http://localhost/v1"),
        *("--trainer.initial_resources.llm.sampling_parameters.temperature", "5e-1"),
    ).initial_resources
    assert changed["prompt"].template == "{answer}"
    assert changed["llm"].model == "8"
    assert changed["llm"].sampling_parameters == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--trainer.algorithm", "baselin"],
            "--trainer.algorithm: unknown algorithm 'baselin'; did you mean 'baseline'? "
            "installed algorithms: baseline, mock",
        ),
        (
            ["--trainer.runner.concurency", "2"],
            "--trainer.runner.concurency: unknown setting; did you mean 'concurrency'? runner 'agent' takes "
            "max_rollouts, poll_interval, concurrency, heartbeat_interval, retry_seconds, worker_name; 'agent' is the "
            "default, and --trainer.runner chooses another runner",
        ),
        (
            ["--trainer.algorithm", "baseline", "--trainer.algorithm.n-epochs", "0"],
            "--trainer.algorithm.n-epochs: input should be greater than or equal to 1",
        ),
        (
            ["--trainer.engine.model", "x"],
            "--trainer.engine.model: there are settings for trainer.engine, and nothing says of which engine. "
            "Choose one of: endpoint",
        ),
        (["--trainer.store"], "--trainer.store needs a value"),
        (["--trainer.runner.concurrency"], "--trainer.runner.concurrency needs a value"),
        (["--trainer.initial_resources.p"], "--trainer.initial_resources.p needs a value"),
        (["--trainer.initial_resources"], "--trainer.initial_resources needs a value"),
        (
            ["--trainer.hooks", "builtins:dict", "--hooks.0.text", "x"],
            "--trainer.hooks: trainer.hooks.0: the class dict does not inherit from Hook",
        ),
        (
            ["--trainer.tracer", "lightning_core.tracer:DummyTracer", "--trainer.tracer.colour", "red"],
            "--trainer.tracer.colour: unknown setting; tracer 'lightning_core.tracer:DummyTracer' takes no settings",
        ),
        (["--trainer.store+", "memory"], "--trainer.store+: trainer.store is no list"),
        (
            ["--trainer.algorithm", "{broken"],
            "--trainer.algorithm: it begins like JSON or YAML and is none: expected ',' or '}', but got "
            "'<stream end>' in line 1, column 8",
        ),
        (
            ["--trainer.hooks.note.text", "x"],
            "--trainer.hooks.note.text: trainer.hooks is a list; a setting is given as "
            "trainer.hooks.NAME_OR_NUMBER.SETTING, for one of: none",
        ),
        (
            ["--trainer.initial_resources.p.template", "x"],
            "--trainer.initial_resources.p.template: trainer.initial_resources.p: a resource is an instance of "
            "Resource, or a mapping with a resource_type",
        ),
        (
            ["--trainer.initial_resources", "[1]"],
            "--trainer.initial_resources: resources are mappings, by their names, such as "
            '{"prompt": {"resource_type": "prompt_template", "template": "{question}"}}, not list',
        ),
        (
            ["--trainer.store", "nowhere.at.all:Store"],
            "--trainer.store: 'nowhere.at.all:Store' cannot be imported: ModuleNotFoundError: No module named "
            "'nowhere'; check the spelling, and that it can be found from here",
        ),
    ],
)
def test_a_wrong_part_is_one_message_that_says_what_and_where(
    refused: Refused, only_core: PluginManager, arguments: list[str], message: str
) -> None:
    assert refused(Trainer, *arguments) == message


# Variables


def test_a_variable_stands_for_an_option_and_the_option_wins(
    run: Run, only_core: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__N_RUNNERS", "3")
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__ALGORITHM", "baseline")
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__ALGORITHM__N_EPOCHS", "4")
    monkeypatch.setenv("LIGHTNING_CORE_TRAINER__MAX_ROLLOUTS", "")
    trainer = run(Trainer)
    assert (trainer.n_runners, trainer.algorithm.n_epochs, trainer.max_rollouts) == (3, 4, None)
    assert run(Trainer, "--n-runners", "2").n_runners == 2
    assert run(Trainer, "--algorithm.n-epochs", "5").algorithm.n_epochs == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "LIGHTNING_CORE_TRAINER__N_RUNERS",
            "3",
            "LIGHTNING_CORE_TRAINER__N_RUNERS: there is no such setting; did you mean "
            "LIGHTNING_CORE_TRAINER__N_RUNNERS? Take the variable away if it is for something else",
        ),
        (
            "LIGHTNING_CORE_TRAINER__N_RUNNERS",
            "x",
            "LIGHTNING_CORE_TRAINER__N_RUNNERS: trainer.n_runners: expected int | none, got x",
        ),
        (
            "LIGHTNING_CORE_TRAINER__RUNNER__CONCURRENCY",
            "0",
            "LIGHTNING_CORE_TRAINER__RUNNER__CONCURRENCY: trainer.runner.concurrency: input should be greater than "
            "or equal to 1; 'agent' is the default, and --trainer.runner chooses another runner",
        ),
    ],
)
def test_a_wrong_variable_is_named(
    refused: Refused,
    only_core: PluginManager,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert refused(Trainer) == message


# Help


def help_text(printed: Printed, classes: Any, *arguments: str) -> str:
    return " ".join(printed(classes, *arguments).split())


def test_help_comes_from_docstrings_and_shows_types_and_defaults(
    printed: Printed, classes: ModuleType
) -> None:
    text = help_text(printed, classes.Solver, "--help")
    assert "Solves everything." in text
    assert "--solver.size SIZE How large it is. (required, type: int)" in text
    assert "What it is known for, 100% of the time. (type: list[str], default: ['plain'])" in text
    assert "--solver.optimizer.rate RATE The learning rate. (type: float, default: 0.1)" in text
    assert "{RED,BLUE} Its color." in text
    assert "--solver.key SECRET What it shows at the door." in text
    assert "--config FILE" in text
    assert "--print_config" in text
    assert "Path to a configuration file" not in text


def test_help_lists_what_is_installed_with_one_line_each(printed: Printed, only_core: PluginManager) -> None:
    text = help_text(printed, Trainer, "-h")
    assert "--trainer.store NAME Where rollouts, spans and results are kept. One of the stores below." in text
    assert "installed stores: memory Keeps everything in this process; gone when it ends." in text
    assert "baseline Runs each task once and logs statuses, spans and rewards." in text
    assert "installed hooks: none" in text
    assert "n_epochs" not in text


def test_help_lists_the_settings_of_a_chosen_part(printed: Printed, only_core: PluginManager) -> None:
    text = help_text(printed, Trainer, "--trainer.algorithm", "baseline", "--help")
    assert "--trainer.algorithm.n_epochs N_EPOCHS baseline: How often each task" in text
    assert "(type: int, default: 1)" in text


def test_help_is_given_even_where_the_rest_is_wrong(printed: Printed, only_core: PluginManager) -> None:
    for wrong in (["--trainer.stor", "x"], ["--trainer.store", "x"], ["--config", "missing.yaml"]):
        assert "--trainer.store NAME" in help_text(printed, Trainer, *wrong, "--help")


# Weight


def test_importing_it_costs_next_to_nothing(run: Run) -> None:
    code = """
import sys
import lightning_core, lightning_core.config, lightning_core.cli
from lightning_core import Trainer
from lightning_core.config import nullable_int
print(sorted({"jsonargparse", "yaml", "docstring_parser"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
