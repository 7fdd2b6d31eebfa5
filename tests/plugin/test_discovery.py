"""What is installed is found without importing any of it, and nothing wrong with it goes unreported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_core.plugin import PluginManager

LIST_AND_PRINT_MODULES = """
import json, sys
from lightning_core.plugin import plugin_manager
manager = plugin_manager()
names = {f"{kind}.{name}" for kind, name in manager.inventory.entries}
print(json.dumps({"names": sorted(names), "modules": sorted(sys.modules)}))
"""


def test_listing_imports_no_plugin(run_python: Callable[..., object]) -> None:
    result = run_python(LIST_AND_PRINT_MODULES)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"tracer.good", "tracer.fine", "store.good", "hook.good", "tracer.broken"} <= set(found["names"])
    assert [
        name for name in found["modules"] if name.startswith(("lightning_test_", "lightning_store_"))
    ] == []


def test_the_command_lists_without_importing_a_plugin(run_python: Callable[..., object]) -> None:
    code = (
        "import sys\nsys.argv = ['lightning-core', 'plugins']\nfrom lightning_core.cli import main\n"
        "main(standalone_mode=False)\nassert not [m for m in sys.modules if m.startswith('lightning_test_')]\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "lightning-test-broken-import 1.2.3" in result.stdout


def test_misspelled_kind_is_reported_with_its_distribution(only_packages: PluginManager) -> None:
    problem = next(one for one in only_packages.inventory.problems if one.entry == "tracr.typo")
    assert (problem.distribution, problem.version) == ("lightning-test-misspelled-kind", "1.0.0")
    assert "unknown kind 'tracr'; did you mean 'tracer'?" in problem.message
    assert "pip uninstall lightning-test-misspelled-kind" in problem.fix


def test_bad_name_is_reported(only_packages: PluginManager) -> None:
    messages = [problem.message for problem in only_packages.inventory.problems]
    assert any("bad name 'Bad Name'" in message for message in messages)


def test_entry_point_without_a_kind_is_reported(
    only_core: PluginManager, announce: Callable[..., None]
) -> None:
    announce("acme-plugin", "agentops")
    only_core.refresh()
    assert [problem.message for problem in only_core.inventory.problems] == [
        "the entry point 'agentops' is not of the form 'kind.name'"
    ]


def test_problems_are_logged_when_they_are_found(
    only_core: PluginManager, announce: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    announce("acme-plugin", "trcer.x")
    only_core.refresh()
    assert "acme-plugin 1.0.0: the entry point 'trcer.x' has the unknown kind 'trcer'" in caplog.text


def test_two_distributions_with_one_name_are_a_conflict(only_packages: PluginManager) -> None:
    claims = only_packages.inventory.conflicts["tracer", "twin"]
    assert sorted(claim.provider for claim in claims) == [
        "lightning-test-twin-one 1.1.0",
        "lightning-test-twin-two 2.2.0",
    ]
    assert ("tracer", "twin") not in only_packages.inventory.entries


def test_builtin_name_stays_built_in(only_packages: PluginManager) -> None:
    assert only_packages.inventory.entries["tracer", "dummy"].builtin
    claims = only_packages.inventory.conflicts["tracer", "dummy"]
    assert [claim.distribution for claim in claims] == ["lightning-core", "lightning-test-reserved-name"]


def test_what_is_installed_while_the_process_runs_is_found(
    only_core: PluginManager, announce: Callable[..., None]
) -> None:
    assert "late" not in only_core.names("tracer")
    announce("acme-late", "tracer.late")
    assert only_core.find("tracer", "late").provider == "acme-late 1.0.0"


def test_a_copy_further_down_the_path_is_not_a_second_provider(
    only_core: PluginManager, announce: Callable[..., None]
) -> None:
    announce("acme-plugin", "tracer.twice", version="1.0.0")
    announce("Acme.Plugin", "tracer.twice", version="2.0.0")
    only_core.refresh()
    assert ("tracer", "twice") in only_core.inventory.entries
    assert only_core.inventory.conflicts == {}


def test_leftovers_of_an_uninstallation_do_no_harm(
    only_core: PluginManager, announce: Callable[..., None], tmp_path: Path
) -> None:
    announce("acme-gone", "tracer.gone")
    (tmp_path / "acme_gone-1.0.0.dist-info" / "METADATA").unlink()
    only_core.refresh()
    assert only_core.inventory.entries["tracer", "gone"].provider == "unknown unknown"


def test_light_imports(run_python: Callable[..., object]) -> None:
    heavy = {"openai", "langchain", "langchain_core", "fastapi", "agentops", "torch", "litellm", "pydantic"}
    heavy |= {"opentelemetry", "pluggy", "click", "rich", "numpy", "httpx", "psutil"}
    result = run_python(f"import sys, lightning_core\nprint(*sorted({heavy!r} & set(sys.modules)))")
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, [], "")


def test_a_plugin_module_pays_only_for_pluggy_and_pydantic(run_python: Callable[..., object]) -> None:
    code = (
        "import sys\nfrom lightning_core import Component, hookimpl\n"
        "paid = {'openai', 'opentelemetry', 'click', 'packaging', 'rich', 'pydantic', 'pluggy'}\n"
        "print(*sorted(paid & set(sys.modules)))"
    )
    assert run_python(code).stdout.split() == ["pluggy", "pydantic"]
