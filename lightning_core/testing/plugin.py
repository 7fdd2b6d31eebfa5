"""The contract of a plugin package: what its metadata announce, its module provides, lightly and with settings."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import pytest
from pydantic import SecretBytes, SecretStr

import lightning_core
from lightning_core.errors import PluginSettingsError
from lightning_core.plugin.catalog import BASES
from lightning_core.plugin.component import API_VERSION, Component, Kind
from lightning_core.plugin.discovery import CORE, Entry, canonical
from lightning_core.plugin.manager import plugin_manager
from lightning_core.plugin.markers import PROJECT
from lightning_core.plugin.resolution import resolve

__all__ = ["PluginPackageConformance"]

_SECRET_WORDS = ("api_key", "password", "secret", "token")
_UNKNOWN_SETTING = "a_setting_that_does_not_exist"

# What the core itself imports costs a plugin nothing.
_IMPORT_ALONE = """
import importlib, sys
import lightning_core.types, lightning_core.store.base, lightning_core.tracer.base, lightning_core.adapter.base
import lightning_core.algorithm.base, lightning_core.execution.base, lightning_core.engine.base
import lightning_core.adapter.credit.base, lightning_core.adapter.settings
import lightning_core.plugin.manager
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


class PluginPackageConformance:
    """Inherit it, name the installed distribution, and pytest checks the package.

    Attributes:
        distribution: The name of the distribution.
        settings: Settings by ``kind.name`` for components that cannot be made without any.
        unselectable: Reason by ``kind.name`` for components that cannot be made in a test at all.

    Example:
        ::

            class TestPackage(PluginPackageConformance):
                distribution = "lightning-store-sqlite"
    """

    distribution: ClassVar[str]
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unselectable: ClassVar[Mapping[str, str]] = {}

    def entries(self) -> list[Entry]:
        """The components that the distribution announces."""
        inventory = plugin_manager().inventory
        claims = [
            *inventory.entries.values(),
            *(claim for one in inventory.conflicts.values() for claim in one),
        ]
        wanted = canonical(self.distribution)
        return list(dict.fromkeys(entry for entry in claims if canonical(entry.distribution) == wanted))

    def components(self) -> list[tuple[Entry, Component[Any]]]:
        """The components that the distribution announces, loaded."""
        return [(entry, plugin_manager().load(entry.kind, entry.name)) for entry in self.entries()]

    def test_every_entry_point_names_a_kind_and_a_component(self) -> None:
        """Entry points are named ``kind.name``, with kinds that exist, and there is at least one."""
        points = importlib.metadata.distribution(self.distribution).entry_points.select(group=PROJECT)
        assert points, f"{self.distribution} has no entry point of the group {PROJECT!r}"
        problems = [
            problem.message
            for problem in plugin_manager().inventory.problems
            if canonical(problem.distribution) == canonical(self.distribution)
        ]
        assert problems == []
        assert {entry.key for entry in self.entries()} == {point.name for point in points}

    def test_no_name_is_claimed_by_another_distribution(self) -> None:
        """Neither a built-in name nor one of another installed distribution."""
        conflicts = plugin_manager().inventory.conflicts
        assert [entry.key for entry in self.entries() if (entry.kind, entry.name) in conflicts] == []

    def test_it_requires_lightning_core_1(self) -> None:
        """The requirement keeps out the unrelated 0.x of the same name, and the next incompatible version."""
        from packaging.requirements import Requirement

        lines = importlib.metadata.requires(self.distribution) or []
        core = [one for one in map(Requirement, lines) if canonical(one.name) == CORE and one.marker is None]
        assert core, f"{self.distribution} does not require {CORE}; write {CORE}>=1.0,<2"
        for requirement in core:
            assert requirement.specifier.contains(lightning_core.__version__)
            for version in ("0.1", "0.99", "2.0"):
                assert not requirement.specifier.contains(version), (
                    f"{requirement} lets {version} in; write >=1.0,<2"
                )

    def test_every_component_is_listed(self) -> None:
        """Each can be found by its kind and name without importing the package."""
        for entry in self.entries():
            assert plugin_manager().find(entry.kind, entry.name) == entry

    def test_every_component_is_provided(self) -> None:
        """The module provides what the metadata announce, with a summary, for this plugin interface."""
        for entry, component in self.components():
            assert entry.name in (component.name, *component.aliases)
            assert component.api_version == API_VERSION
            assert component.summary, f"{entry.key} has no summary"

    def test_no_component_is_provided_unannounced(self) -> None:
        """What the module provides can be selected: each name and alias has an entry point."""
        announced = {entry.key for entry in self.entries()}
        for entry, component in self.components():
            provided = {f"{entry.kind}.{name}" for name in (component.name, *component.aliases)}
            assert provided <= announced, f"no entry point for {', '.join(sorted(provided - announced))}"

    def test_api_version_is_a_literal(self) -> None:
        """Importing API_VERSION would claim every future version of the interface."""
        for target in self._modules():
            tree = ast.parse(inspect.getsource(import_module(target)))
            calls = [
                node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "Component"
            ]
            for call in calls:
                literal = [item.value for item in call.keywords if item.arg == "api_version"]
                assert literal, f"{target}, line {call.lineno}: write api_version={API_VERSION}"
                assert isinstance(literal[0], ast.Constant), f"{target}, line {call.lineno}: write a literal"

    def test_the_module_imports_nothing_heavy(self) -> None:
        """Only the core, pydantic and the standard library: an SDK is imported by the factory."""
        for target in self._modules():
            result = subprocess.run(
                [sys.executable, "-c", _IMPORT_ALONE, target], capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stderr
            loaded = set(result.stdout.split()) - set(sys.stdlib_module_names) - {target.partition(".")[0]}
            heavy = sorted(name for name in loaded if not name.startswith("__"))
            assert heavy == [], f"importing {target} also imports {', '.join(heavy)}"

    def test_settings_are_understood_or_refused(self) -> None:
        """The config forbids what it does not know, and the error names the field."""
        for entry, component in self.components():
            assert component.config.model_config.get("extra") == "forbid", (
                f"{entry.key}: give its config extra='forbid'"
            )
            spec = {"type": entry.name, **self.settings.get(entry.key, {}), _UNKNOWN_SETTING: 1}
            with pytest.raises(
                PluginSettingsError, match=rf"{entry.kind}\.{_UNKNOWN_SETTING}: unknown setting"
            ):
                resolve(entry.kind, spec)

    def test_every_setting_is_described(self) -> None:
        """``plugins show`` has something to say about each."""
        for entry, component in self.components():
            for name, field in component.config.model_fields.items():
                assert field.description, f"{entry.key}: setting {name!r} has no description"

    def test_keys_are_secret(self) -> None:
        """A setting that holds a key is a ``SecretStr``, so that no message or log prints it."""
        for entry, component in self.components():
            for name, field in component.config.model_fields.items():
                if name.endswith(_SECRET_WORDS):
                    types = {field.annotation, *typing.get_args(field.annotation)}
                    assert types & {SecretStr, SecretBytes}, f"{entry.key}: make {name!r} a SecretStr"

    def test_the_factory_takes_every_setting(self) -> None:
        """Each field of the config is a keyword of the factory."""
        for entry, component in self.components():
            parameters = inspect.signature(component.factory).parameters.values()
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                continue
            missing = set(component.config.model_fields) - {parameter.name for parameter in parameters}
            assert missing == set(), f"the factory of {entry.key} does not take {', '.join(sorted(missing))}"

    def test_every_component_can_be_selected(self) -> None:
        """Selecting it by name makes a component of its kind."""
        for entry in self.entries():
            if entry.key in self.unselectable:
                continue
            made = resolve(entry.kind, {"type": entry.name, **self.settings.get(entry.key, {})})
            try:
                assert _is_of_kind(made, entry.kind)
            finally:
                if entry.kind == "store":
                    from lightning_core.bridge import run_sync

                    run_sync(made.close())

    def _modules(self) -> list[str]:
        return sorted({entry.target.partition(":")[0] for entry in self.entries()})


def _called(call: ast.Call) -> str | None:
    function: ast.expr = call.func
    if isinstance(function, ast.Subscript):
        function = function.value
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", None)


def _is_of_kind(value: object, kind: Kind) -> bool:
    base = BASES[kind]
    return value is not None and (base is None or isinstance(value, getattr(import_module(base[0]), base[1])))
