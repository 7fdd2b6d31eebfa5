"""Finds what installed distributions announce, from their metadata alone; imports none of them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, TypeGuard, cast

import importlib_metadata
from importlib_metadata import Distribution

import lightning_core
from lightning_core.plugin.component import KINDS, NAME, Kind
from lightning_core.plugin.markers import PROJECT

__all__ = [
    "CORE",
    "DISABLE_VARIABLE",
    "Entry",
    "Inventory",
    "Problem",
    "canonical",
    "disable_patterns",
    "disabled_by",
    "discover",
    "distributions",
    "metadata_field",
    "unmet_requirement",
]

DISABLE_VARIABLE: Final = "LIGHTNING_CORE_DISABLE_PLUGINS"
"""Comma-separated patterns such as ``tracer.agentops,hook.*``."""

CORE: Final = "lightning-core"
"""The distribution that this module belongs to."""


@dataclass(frozen=True)
class Entry:
    """One announced component.

    Attributes:
        kind: Its kind.
        name: What a user types.
        target: The module that provides it, as in the entry point.
        distribution: Who announces it.
        version: The distribution's version.
        requires: The distribution's requirements.
        builtin: Whether it comes with the core.
        summary: One line about the component, or, since it is not imported, about its distribution.
    """

    kind: Kind
    name: str
    target: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    builtin: bool = False
    summary: str = ""

    @property
    def key(self) -> str:
        """``kind.name``, as in the metadata."""
        return f"{self.kind}.{self.name}"

    @property
    def provider(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Problem:
    """Something about an installed distribution that does not work, and what to do about it."""

    distribution: str
    version: str
    entry: str
    message: str
    fix: str


@dataclass(frozen=True)
class Inventory:
    """What is installed.

    Attributes:
        entries: Components by (kind, name), each claimed by one distribution.
        conflicts: Names that several claim, with all claims; a built-in comes first and stays in ``entries``.
        problems: Entry points that announce nothing usable.
    """

    entries: dict[tuple[Kind, str], Entry] = field(default_factory=dict[tuple[Kind, str], Entry])
    conflicts: dict[tuple[Kind, str], tuple[Entry, ...]] = field(
        default_factory=dict[tuple[Kind, str], tuple[Entry, ...]]
    )
    problems: list[Problem] = field(default_factory=list[Problem])


def discover(builtins: Iterable[Entry] = ()) -> Inventory:
    """Read the entry points of all installed distributions; nobody may claim the names of ``builtins``."""
    inventory = Inventory()
    claims: dict[tuple[Kind, str], list[Entry]] = {(entry.kind, entry.name): [entry] for entry in builtins}
    for distribution in _announcing():
        for found in _read(distribution):
            if isinstance(found, Problem):
                inventory.problems.append(found)
            else:
                same_name = claims.setdefault((found.kind, found.name), [])
                if found not in same_name:
                    same_name.append(found)
    for key, entries in sorted(claims.items()):
        # In an order of our own: that of a folder's files differs from machine to machine.
        entries.sort(key=lambda entry: (not entry.builtin, entry.distribution, entry.target))
        if len(entries) > 1:
            inventory.conflicts[key] = tuple(entries)
        if len(entries) == 1 or entries[0].builtin:
            inventory.entries[key] = entries[0]
    return inventory


def distributions() -> Iterable[Distribution]:
    """Everything that is installed, as far as the import system can see it."""
    # Its annotations leave its own types open.
    found = cast("Any", importlib_metadata).distributions()
    return cast("Iterable[Distribution]", found)


def _announcing() -> Iterator[Distribution]:
    """The distributions with entry points in our group; of one installed twice, the copy that is imported."""
    seen: set[str] = set()
    for distribution in distributions():
        text: str | None = cast("Any", distribution).read_text("entry_points.txt")
        # Parsing the metadata of everything that is installed would take most of the time of a listing.
        if text is None or PROJECT not in text:
            continue
        name = canonical(metadata_field(distribution, "Name"))
        if name in seen or name == CORE:
            continue
        seen.add(name)
        yield distribution


def _read(distribution: Distribution) -> Iterator[Entry | Problem]:
    name, version = metadata_field(distribution, "Name"), metadata_field(distribution, "Version")
    points: Any = distribution.entry_points
    for point in points:
        if point.group != PROJECT:
            continue
        kind, dot, component = point.name.partition(".")
        ask = f"ask the authors of {name} to correct it, or uninstall it: pip uninstall {name}"
        if not dot:
            message = f"the entry point {point.name!r} is not of the form 'kind.name'"
            yield Problem(name, version, point.name, message, ask)
        elif not _is_kind(kind):
            close = difflib.get_close_matches(str(kind), KINDS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the kinds are {', '.join(KINDS)}"
            message = f"the entry point {point.name!r} has the unknown kind {kind!r}; {hint}"
            yield Problem(name, version, point.name, message, ask)
        elif NAME.fullmatch(component) is None:
            message = (
                f"the entry point {point.name!r} has the bad name {component!r}; names begin with a small "
                "letter and go on with small letters, digits, '-' and '_'"
            )
            yield Problem(name, version, point.name, message, ask)
        else:
            requires = _requirements(distribution)
            about = metadata_field(distribution, "Summary", "")
            yield Entry(kind, component, point.value, name, version, requires, summary=about)


def _requirements(distribution: Distribution) -> tuple[str, ...]:
    try:
        return tuple(distribution.requires or ())
    except (FileNotFoundError, ModuleNotFoundError):
        return ()


def metadata_field(distribution: Distribution, field: str, default: str = "unknown") -> str:
    """One field of a distribution's metadata; a broken uninstallation may have left it without any."""
    try:
        return cast("Any", distribution.metadata).get(field, default)
    except (FileNotFoundError, ModuleNotFoundError, AttributeError):
        return default


def canonical(name: str) -> str:
    """A distribution's name in the one spelling that stands for all (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_kind(word: str) -> TypeGuard[Kind]:
    return word in KINDS


def disable_patterns() -> list[str]:
    """The patterns of ``LIGHTNING_CORE_DISABLE_PLUGINS``."""
    return [pattern for part in os.environ.get(DISABLE_VARIABLE, "").split(",") if (pattern := part.strip())]


def disabled_by(kind: str, name: str) -> str | None:
    """Return the pattern of ``LIGHTNING_CORE_DISABLE_PLUGINS`` that switches this component off, if any."""
    return next((pattern for pattern in disable_patterns() if fnmatchcase(f"{kind}.{name}", pattern)), None)


def unmet_requirement(entry: Entry) -> str | None:
    """Return the distribution's requirement on lightning-core if this version does not satisfy it."""
    # Imported when a plugin is selected, not when the names are listed.
    from packaging.requirements import InvalidRequirement, Requirement

    for line in entry.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonical(requirement.name) != CORE:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(lightning_core.__version__, prereleases=True):
            return str(requirement)
    return None
