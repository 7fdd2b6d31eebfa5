"""Loads a component's module when it is selected, and keeps what went wrong from everything else."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any, cast

import pluggy

import lightning_core
from lightning_core.errors import (
    BrokenPluginError,
    DisabledPluginError,
    IncompatiblePluginError,
    PluginConflictError,
    PluginError,
    UnknownPluginError,
)
from lightning_core.plugin import builtins
from lightning_core.plugin.catalog import FIRST_PARTY, PLURALS
from lightning_core.plugin.component import API_VERSION, KINDS, NAME, Component, Kind
from lightning_core.plugin.discovery import (
    CORE,
    DISABLE_VARIABLE,
    Entry,
    Inventory,
    Problem,
    disable_patterns,
    disabled_by,
    discover,
    unmet_requirement,
)
from lightning_core.plugin.hookspecs import LightningSpecs
from lightning_core.plugin.markers import PROJECT

__all__ = ["PluginManager", "plugin_manager"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """Why a component cannot be loaded, kept for every later selection."""

    error: type[PluginError]
    message: str
    cause: BaseException | None

    def raise_(self) -> None:
        raise self.error(self.message) from self.cause


class PluginManager:
    """Knows the installed components and loads them one at a time.

    Reading the inventory imports no plugin. Selecting a component imports the one module that provides it; a
    failure there is kept and raised for that component only.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(LightningSpecs)
        self._builtins: dict[tuple[Kind, str], Component[Any]] = {}
        self._builtin_entries: list[Entry] = []
        self._loaded: dict[Entry, Component[Any] | _Failure] = {}
        self._inventory: Inventory | None = None
        self._path: tuple[str, ...] = ()
        self._register(builtins, builtins.__name__)
        for kind in KINDS:
            for component in self._provided(builtins, kind):
                for name in (component.name, *component.aliases):
                    self._builtins[kind, name] = component
                    summary = component.summary if name == component.name else f"Alias of {component.name}."
                    entry = Entry(
                        kind,
                        name,
                        builtins.__name__,
                        CORE,
                        lightning_core.__version__,
                        builtin=True,
                        summary=summary,
                    )
                    self._builtin_entries.append(entry)

    @property
    def inventory(self) -> Inventory:
        """What is installed; read again when ``sys.path`` has changed."""
        with self._lock:
            if self._inventory is None or self._path != tuple(sys.path):
                self.refresh()
            assert self._inventory is not None
            return self._inventory

    def refresh(self) -> None:
        """Look again at what is installed."""
        with self._lock:
            importlib.invalidate_caches()
            self._path = tuple(sys.path)
            self._inventory = discover(self._builtin_entries)
            for problem in self._inventory.problems:
                logger.warning(
                    "%s %s: %s (%s)", problem.distribution, problem.version, problem.message, problem.fix
                )

    def names(self, kind: Kind) -> list[str]:
        """The names of a kind that can be selected: installed, not disabled, claimed by one distribution."""
        inventory = self.inventory
        return [
            name for of_kind, name in inventory.entries if of_kind == kind and disabled_by(kind, name) is None
        ]

    def find(self, kind: Kind, name: str) -> Entry:
        """Find who provides a component, without importing it.

        Raises:
            UnknownPluginError, DisabledPluginError, PluginConflictError: If nobody does, it is switched off,
                or several distributions claim the name.
        """
        key = (kind, name)
        if key not in self.inventory.entries and key not in self.inventory.conflicts:
            # Installed while this process runs, as in a notebook.
            self.refresh()
        pattern = disabled_by(kind, name)
        inventory = self.inventory
        if pattern is not None and (key in inventory.entries or key in inventory.conflicts):
            raise DisabledPluginError(
                f"{kind} {name!r} is disabled by {pattern!r} in the environment variable {DISABLE_VARIABLE}; "
                "take it out there to use it"
            )
        entry = inventory.entries.get(key)
        if entry is not None:
            return entry
        if key in inventory.conflicts:
            raise PluginConflictError(_conflict(inventory.conflicts[key]))
        raise UnknownPluginError(self._unknown(kind, name))

    def load(self, kind: Kind, name: str) -> Component[Any]:
        """Load a component; its factory is not called.

        Raises:
            UnknownPluginError, DisabledPluginError, PluginConflictError: See :meth:`find`.
            IncompatiblePluginError: If it was written for another core or plugin interface.
            BrokenPluginError: If its module cannot be imported or does not provide it.
        """
        entry = self.find(kind, name)
        if entry.builtin:
            return self._builtins[kind, name]
        with self._lock:
            result = self._loaded.get(entry)
            if result is None:
                try:
                    result = self._load(entry)
                except PluginError as error:
                    result = _Failure(type(error), str(error), error.__cause__)
                self._loaded[entry] = result
        if isinstance(result, _Failure):
            result.raise_()
            raise AssertionError
        return result

    def call_each(self, kind: Kind, hook: str) -> Iterator[tuple[Entry, object]]:
        """Call a hook in each installed plugin that has components of a kind and implements it.

        Yields:
            One of the plugin's components, and what the hook returned, or the exception that kept it from that.
        """
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        asked: set[str] = set()
        for name in self.names(kind):
            entry = self.find(kind, name)
            if entry.builtin or entry.target in asked:
                continue
            asked.add(entry.target)
            try:
                self.load(kind, name)
                plugin = self._pluggy.get_plugin(entry.target)
                for implementation in caller.get_hookimpls():
                    if implementation.plugin is plugin:
                        yield entry, cast("object", implementation.function())
            except Exception as error:
                yield entry, error

    def check(self) -> list[Problem]:
        """Load every component that is not disabled, and return everything that is wrong."""
        inventory = self.inventory
        problems = list(inventory.problems)
        for (kind, name), claims in inventory.conflicts.items():
            if disabled_by(kind, name) is None:
                claim = claims[-1]
                message, _, fix = _conflict(claims).partition("; ")
                problems.append(Problem(claim.distribution, claim.version, claim.key, message, fix))
        for (kind, name), entry in inventory.entries.items():
            if entry.builtin or disabled_by(kind, name) is not None:
                continue
            try:
                self.load(kind, name)
            except PluginError as error:
                message, _, fix = str(error).rpartition("; ")
                problems.append(Problem(entry.distribution, entry.version, entry.key, message, fix))
        for pattern in self.idle_patterns():
            kind, dot, _ = pattern.partition(".")
            if not dot or not any(fnmatchcase(known, kind) for known in KINDS):
                message = f"{pattern!r} in {DISABLE_VARIABLE} can match no component, and disables nothing"
                fix = "write kind.name, such as tracer.agentops or hook.*, or remove it"
                problems.append(Problem(CORE, lightning_core.__version__, pattern, message, fix))
        return problems

    def idle_patterns(self) -> list[str]:
        """The patterns of ``LIGHTNING_CORE_DISABLE_PLUGINS`` that match nothing that is installed."""
        keys = [f"{kind}.{name}" for kind, name in {**self.inventory.entries, **self.inventory.conflicts}]
        return [
            pattern for pattern in disable_patterns() if not any(fnmatchcase(key, pattern) for key in keys)
        ]

    def _load(self, entry: Entry) -> Component[Any]:
        unmet = unmet_requirement(entry)
        if unmet is not None:
            raise IncompatiblePluginError(
                f"{entry.kind} {entry.name!r}: {entry.provider} requires {unmet}, and lightning-core "
                f"{lightning_core.__version__} is installed; install versions that fit, for instance "
                f"pip install --upgrade {entry.distribution}"
            )
        way_out = (
            f"update it (pip install --upgrade {entry.distribution}), uninstall it, or disable it with "
            f"{DISABLE_VARIABLE}={entry.key}"
        )
        try:
            plugin = _import_target(entry.target)
            self._register(plugin, entry.target)
            components = self._provided(plugin, entry.kind)
        except (Exception, SystemExit) as error:
            raise BrokenPluginError(
                f"{entry.kind} {entry.name!r}: {entry.target} of {entry.provider} cannot be loaded: "
                f"{type(error).__name__}: {error}; {way_out}"
            ) from error
        for component in components:
            if component.api_version != API_VERSION:
                raise IncompatiblePluginError(
                    f"{entry.kind} {entry.name!r}: {entry.provider} was written for version "
                    f"{component.api_version} of the plugin interface, and lightning-core "
                    f"{lightning_core.__version__} has version {API_VERSION}; install versions that fit, for "
                    f"instance pip install --upgrade {entry.distribution} {CORE}"
                )
            if entry.name in (component.name, *component.aliases):
                return component
        names = ", ".join(repr(component.name) for component in components) or "nothing"
        raise BrokenPluginError(
            f"{entry.kind} {entry.name!r}: {entry.provider} announces it, but "
            f"lightning_{PLURALS[entry.kind]} in {entry.target} returns {names}; {way_out}"
        )

    def _register(self, plugin: Any, name: str) -> None:
        if self._pluggy.has_plugin(name):
            return
        try:
            self._pluggy.register(plugin, name)
        except Exception:
            # Older versions of pluggy keep a plugin that they have refused.
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                known = [name for name in vars(LightningSpecs) if name.startswith("lightning_")]
                close = difflib.get_close_matches(caller.name, known, 1)
                self._pluggy.unregister(name=name)
                raise TypeError(
                    f"it implements the unknown hook {caller.name!r}"
                    + (f", did you mean {close[0]!r}?" if close else f", the hooks are {', '.join(known)}")
                )

    def _provided(self, plugin: Any, kind: Kind) -> list[Component[Any]]:
        """Call one plugin's own implementation: the failure of another must not be met here."""
        hook = f"lightning_{PLURALS[kind]}"
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        components: list[Component[Any]] = []
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            returned = cast("object", implementation.function())
            if not isinstance(returned, Iterable):
                raise TypeError(f"{hook} returned a {type(returned).__name__}, not a list of Component")
            for component in cast("Iterable[Any]", returned):
                if not isinstance(component, Component):
                    raise TypeError(
                        f"{hook} returned a {type(component).__name__} in its list, not a Component"
                    )
                if NAME.fullmatch(component.name) is None:
                    raise ValueError(f"{hook} returned a component with the bad name {component.name!r}")
                components.append(cast("Component[Any]", component))
        return components

    def _unknown(self, kind: Kind, name: str) -> str:
        installed = sorted(self.names(kind))
        packages = FIRST_PARTY[kind]
        close = difflib.get_close_matches(name.lower(), sorted({*installed, *packages}), 1)
        meant = name if name in packages else close[0] if close else None
        message = f"unknown {kind} {name!r}; "
        if meant is not None and meant != name:
            message += f"did you mean {meant!r}? "
        message += f"installed {PLURALS[kind]}: {', '.join(installed) or 'none'}"
        if meant is not None and meant not in installed and meant in packages:
            message += f". To get it: pip install {packages[meant]}"
        for problem in self.inventory.problems:
            if problem.entry.endswith(f".{name}"):
                message += f". {problem.distribution} {problem.version}: {problem.message}"
        return message


def _import_target(target: str) -> Any:
    module, _, attributes = target.partition(":")
    plugin: Any = import_module(module.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        plugin = getattr(plugin, attribute)
    return plugin


def _conflict(claims: tuple[Entry, ...]) -> str:
    kind, name = claims[0].kind, claims[0].name
    providers = ", ".join(sorted({claim.provider for claim in claims if not claim.builtin}))
    others = sorted({claim.distribution for claim in claims if not claim.builtin})
    if claims[0].builtin:
        return (
            f"{kind} {name!r} is built into lightning-core, and {providers} claims the name, which is "
            f"ignored; ask its authors to rename it, or pip uninstall {others[0]}"
        )
    if len(others) == 1:
        return (
            f"{kind} {name!r} is announced twice by {providers}; "
            f"ask its authors to correct it, or pip uninstall {others[0]}"
        )
    return f"{kind} {name!r} is provided by {providers}; uninstall all but one: pip uninstall {others[-1]}"


@cache
def plugin_manager() -> PluginManager:
    """The plugin manager of this process."""
    return PluginManager()
