"""``lightning-core plugins`` lists, checks and shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

import lightning_core
from lightning_core.cli import COMMANDS, main
from lightning_core.plugin import PluginManager


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def rows(output: str) -> dict[str, str]:
    """The lines of a listing by ``kind.name``."""
    return {".".join(line.split()[:2]): line for line in output.splitlines() if len(line.split()) > 1}


def test_version() -> None:
    assert run("--version").output == f"lightning-core, version {lightning_core.__version__}\n"


def test_help_names_every_command_with_a_summary() -> None:
    output = run("--help").output
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] and len(line.split()) > 2 for line in output.splitlines()), (
            command
        )


def test_listing_shows_kind_name_provider_status_and_summary(only_packages: PluginManager) -> None:
    result = run("plugins")
    assert result.exit_code == 0
    listed = rows(result.output)
    assert "lightning-core 1.0.0" in listed["store.memory"]
    assert "available" in listed["tracer.good"]
    assert "A tracer with settings, a store with a URL and a hook" in listed["tracer.good"]
    assert "lightning-test-twin-one 1.1.0 | lightning-test-twin-two 2.2.0" in listed["tracer.twin"]
    assert "conflict" in listed["tracer.twin"]
    assert "Alias of shared-memory." in listed["strategy.shm"]


def test_listing_reports_misspelled_kinds(only_packages: PluginManager) -> None:
    assert "lightning-test-misspelled-kind 1.0.0: the entry point 'tracr.typo'" in run("plugins").output


def test_listing_shows_what_is_disabled(
    only_packages: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "hook.*")
    assert "disabled by hook.*" in rows(run("plugins").output)["hook.good"]


def test_check_fails_with_the_problem_and_the_fix(only_packages: PluginManager) -> None:
    result = run("plugins", "--check")
    assert result.exit_code == 1
    assert "problem: lightning-test-broken-import 1.2.3" in result.output
    assert "fix: update it (pip install --upgrade lightning-test-broken-import)" in result.output
    assert "lightning-test-wrong-api" in result.output


def test_check_of_a_sound_installation(only_core: PluginManager) -> None:
    result = run("plugins", "--check")
    assert result.exit_code == 0
    assert "everything can be loaded" in result.output


def test_json_listing(only_packages: PluginManager) -> None:
    data: dict[str, Any] = json.loads(run("plugins", "--json").output)
    memory = next(one for one in data["plugins"] if (one["kind"], one["name"]) == ("store", "memory"))
    assert memory == {
        "kind": "store",
        "name": "memory",
        "provider": "lightning-core 1.0.0",
        "target": "lightning_core.plugin.builtins",
        "builtin": True,
        "default": True,
        "status": "available",
        "summary": "Keeps everything in this process; gone when it ends.",
    }
    assert {problem["entry"] for problem in data["problems"]} == {"tracr.typo", "tracer.Bad Name"}


def test_json_check(only_packages: PluginManager) -> None:
    result = run("plugins", "--json", "--check")
    assert result.exit_code == 1
    assert "tracer.broken" in {problem["entry"] for problem in json.loads(result.output)["problems"]}


def test_show_prints_summary_provider_and_settings(only_packages: PluginManager) -> None:
    output = run("plugins", "show", "tracer.good").output
    assert "Records nothing, well." in output
    assert "lightning-test-good 1.0.0 (lightning_test_good.plugin)" in output
    assert "good, fine" in output
    settings = {line.split()[0]: " ".join(line.split()[1:]) for line in output.splitlines() if line}
    assert settings["service_name"] == 'str "agents" What the spans are recorded for.'
    assert settings["mode"] == '"all" | "some" "all" How much is recorded.'
    assert settings["limit"] == "int | none none The most spans to keep."
    assert settings["tags"] == "list[str] [] Labels of every span."
    assert settings["api_key"] == "secret | none none A key, which no message may show."


def test_show_says_that_there_is_a_url(only_packages: PluginManager) -> None:
    assert "good://..." in run("plugins", "show", "store.good").output


def test_show_of_a_component_without_settings(only_core: PluginManager) -> None:
    assert "It takes no settings." in run("plugins", "show", "store.memory").output


def test_show_as_json(only_packages: PluginManager) -> None:
    data = json.loads(run("plugins", "show", "--json", "tracer.fine").output)
    assert data["name"] == "good"
    assert [setting["name"] for setting in data["settings"]] == [
        "service_name",
        "mode",
        "limit",
        "tags",
        "api_key",
    ]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("memory", "Error: 'memory' is not of the form KIND.NAME; did you mean 'store.memory'?"),
        (
            "tracer.agentops",
            "Error: unknown tracer 'agentops'; installed tracers: dummy. To get it: pip install",
        ),
        ("zzz", "Error: 'zzz' is not of the form KIND.NAME; the kinds are tracer"),
    ],
)
def test_show_of_what_is_not_there(only_core: PluginManager, argument: str, expected: str) -> None:
    result = run("plugins", "show", argument)
    assert result.exit_code == 1
    assert result.output.startswith(expected)


def test_show_of_a_broken_plugin_is_an_error_without_a_traceback(only_packages: PluginManager) -> None:
    result = run("plugins", "show", "tracer.broken")
    assert result.exit_code == 1
    assert result.output.startswith("Error: tracer 'broken': lightning_test_broken_import.plugin of")
    assert "Traceback" not in result.output


def test_unknown_command_is_refused() -> None:
    assert run("plugin").exit_code == 2
