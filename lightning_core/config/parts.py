"""A part that plugins provide, as a command line or a file describes it: which one, and its settings."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from pydantic import BaseModel

from lightning_core.config.files import KeyPath, read_yaml
from lightning_core.config.nullable import nullable_str
from lightning_core.config.signatures import Parameter
from lightning_core.config.values import NO_VALUE, Given, Text, blamed, dotted, merged, settled
from lightning_core.errors import ConfigurationError, LightningError
from lightning_core.plugin.component import Component, Kind
from lightning_core.plugin.discovery import disabled_by
from lightning_core.plugin.manager import plugin_manager
from lightning_core.plugin.resolution import default_name, find_component, resolve_argument
from lightning_core.plugin.settings import validate_settings

__all__ = ["Choice", "Part", "installed"]


@dataclass
class Choice:
    """One part: which, and with which settings.

    Attributes:
        key: Its key, such as ``("trainer", "hooks", "0")``.
        kind: Its kind.
        type: A name, a URL or an import path; ``None`` for the default.
        source: Where that stands.
        settings: Its settings; texts are read by :meth:`check`.
        sources: Where each of them stands.
        read: What the URL says.
        config: The model of the settings of an installed component.
    """

    key: KeyPath
    kind: Kind
    type: str | None = None
    source: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    read: dict[str, Any] = field(default_factory=dict[str, Any])
    config: type[BaseModel] | None = None

    def choose(self, name: Any, source: str) -> None:
        """Take another part; settings of the one before are not for it."""
        if name is not None and not isinstance(name, str):
            raise ConfigurationError(
                f"{source}: {dotted(self.key)} must be a name, a URL, an import path, or a mapping with a type and "
                f"settings, not {type(name).__name__}"
            )
        name = nullable_str(name)
        name = None if name is None else name.strip()
        if name != self.type:
            self.settings, self.sources = {}, {}
        self.type, self.source = name, source

    def give(self, path: KeyPath, value: Any, source: str) -> None:
        """Set one setting, or one value inside of it."""
        path = (_setting(path[0]), *path[1:])
        self.settings = merged(self.settings, path, value)
        self.sources[path[0]] = source

    def take(self, value: Any, where: Callable[..., str]) -> None:
        """Take what stands for the whole part: what chooses it, and its settings.

        Args:
            value: A name, a URL, an import path, or a mapping with a type and settings.
            where: Says where it stands, and with the name of a setting, where that does.
        """
        if isinstance(value, Text):
            value = _read(value, where())
        if not isinstance(value, Mapping):
            self.choose(value, where())
            return
        mapping = cast("Mapping[Any, Any]", value)
        if "type" in mapping:
            self.choose(mapping["type"], where("type"))
        for name, inner in mapping.items():
            if name != "type":
                self.give((str(name),), inner, where(str(name)))

    def check(self) -> None:
        """Find the component, and read and check the settings.

        Raises:
            LightningError: If there is no such component, or a setting is unknown or wrong.
        """
        if self.type is None:
            if not self.settings:
                return
            self.type = default_name(self.kind)
            if self.type is None:
                source = next(iter(self.sources.values()))
                raise ConfigurationError(
                    f"{source}: there are settings for {dotted(self.key)}, and nothing says of which {self.kind}. "
                    f"Choose one of: {', '.join(sorted(plugin_manager().names(self.kind))) or 'none is installed'}"
                )
        found = self._found()
        if found is None:
            # Of a class, nothing tells what its settings are.
            self.settings = {
                name: True if value is NO_VALUE else settled(value) for name, value in self.settings.items()
            }
            return
        component, self.read = found
        self.config = component.config
        fields = component.config.model_fields
        for name, value in self.settings.items():
            info = fields.get(name) or next((each for each in fields.values() if each.alias == name), None)
            annotation = Any if info is None else info.annotation
            if value is not NO_VALUE:
                self.settings[name] = settled(value, annotation)
            elif bool in (annotation, *typing.get_args(annotation)):
                self.settings[name] = True
            else:
                raise ConfigurationError(f"{self.sources[name]} needs a value")
        try:
            validate_settings(
                component.config,
                {**self.read, **self.settings},
                field=dotted(self.key),
                what=f"{self.kind} {component.name!r}",
            )
        except LightningError as error:
            hint = ""
            if not self.source:
                hint = f"; {self.type!r} is the default, and --{dotted(self.key)} chooses another {self.kind}"
            raise type(error)(self.placed(str(error)) + hint) from None

    def _found(self) -> tuple[Component[Any], dict[str, Any]] | None:
        assert self.type is not None
        try:
            return find_component(dotted(self.key), self.kind, self.type)
        except LightningError as error:
            raise type(error)(self.placed(str(error))) from error

    def placed(self, message: str) -> str:
        """Return a message about the part with the key, and where that stands, in front."""
        key = dotted(self.key)
        if re.match(rf"{re.escape(key)}[.:]", message) is None:
            message = f"{key}: {message}"
        places = [
            source
            for name, source in self.sources.items()
            if re.search(rf"(?:^|; ){re.escape(key)}\.{re.escape(name)}[.:]", message)
        ]
        return blamed(" and ".join(dict.fromkeys(places)) or self.source, message)

    @property
    def spec(self) -> Any:
        """The specification of the part, as :func:`lightning_core.resolve` takes it."""
        if self.settings:
            return {"type": self.type, **self.settings}
        return self.type


class Part:
    """What a parameter of a constructor gets that takes a part, or a list of parts.

    Args:
        key: Its key, such as ``("trainer", "store")``.
        parameter: The parameter.
    """

    def __init__(self, key: KeyPath, parameter: Parameter) -> None:
        assert parameter.part is not None
        self.key = key
        self.parameter = parameter
        self.kind: Kind = parameter.part
        self.choices: list[Choice] = []
        self.given = False

    def take(self, given: Given) -> None:
        """Take one thing that the user wrote; lower layers first, and in each what chooses before settings."""
        self.given = True
        rest = given.key[len(self.key) :]
        if rest == ("type",):
            rest = ()
        if self.parameter.many:
            self._take_many(given, rest)
            return
        if not self.choices:
            self.choices.append(Choice(self.key, self.kind))
        if given.append:
            raise ConfigurationError(f"{given.source}: {dotted(self.key)} is no list")
        if rest:
            self.choices[0].give(rest, given.value, given.source)
        else:
            self.choices[0].take(given.value, given.where)

    def _take_many(self, given: Given, rest: KeyPath) -> None:
        if not rest:
            value = _read(given.value, given.source) if isinstance(given.value, Text) else given.value
            items = cast("list[Any]", value) if isinstance(value, list) else [value]
            if not given.append:
                self.choices.clear()
            for number, item in enumerate(items if value is not None else ()):
                choice = Choice((*self.key, str(len(self.choices))), self.kind)
                choice.take(item, partial(given.where, str(number)) if items is value else given.where)
                self.choices.append(choice)
            return
        head, *path = rest
        chosen = [
            choice
            for choice in self.choices
            if head in (choice.key[-1], _setting(choice.type or ""), choice.type)
        ]
        if len(chosen) != 1 or not path:
            names = ", ".join(f"{choice.key[-1]} ({choice.type})" for choice in self.choices) or "none"
            raise ConfigurationError(
                f"{given.source}: {dotted(self.key)} is a list; a setting is given as "
                f"{dotted((*self.key, 'NAME_OR_NUMBER', 'SETTING'))}, for one of: {names}"
            )
        if path == ["type"]:
            chosen[0].choose(given.value, given.source)
        else:
            chosen[0].give(tuple(path), given.value, given.source)

    def check(self) -> None:
        """Check every choice; see :meth:`Choice.check`."""
        for choice in self.choices:
            choice.check()

    def argument(self) -> Any:
        """Return what the constructor gets: specifications where it takes these, else the parts themselves."""
        made = [self._made(choice) for choice in self.choices]
        return made if self.parameter.many else made[0]

    def _made(self, choice: Choice) -> Any:
        if self.parameter.by_spec or choice.spec is None:
            return choice.spec
        try:
            return resolve_argument(dotted(choice.key), self.kind, choice.spec)
        except LightningError as error:
            raise type(error)(choice.placed(str(error))) from error

    def placed(self, message: str) -> str | None:
        """Return a constructor's message with where this part stands in front; ``None`` if it is about another.

        Args:
            message: What :func:`lightning_core.plugin.resolve_argument` says: it begins with the parameter's name.
        """
        found = re.match(rf"(?:{re.escape(self.parameter.name)}|{self.kind})(?:\[(\d+)\])?(?=[.:])", message)
        number = int(found[1] or 0) if found else 0
        if found is None or number >= len(self.choices):
            return None
        choice = self.choices[number]
        return choice.placed(dotted(choice.key) + message[found.end() :])


def installed(kind: Kind) -> list[tuple[str, str]]:
    """Return name and one-line summary of what can be selected for a kind, without importing any of it."""
    inventory = plugin_manager().inventory
    return sorted(
        (name, entry.summary)
        for (of_kind, name), entry in inventory.entries.items()
        if of_kind == kind and disabled_by(kind, name) is None
    )


def _setting(name: str) -> str:
    return name.replace("-", "_")


def _read(text: str, source: str) -> Any:
    """Read text that stands for a part: JSON or YAML where it looks like a mapping or a list, else as it is."""
    if not text.lstrip().startswith(("{", "[")):
        return nullable_str(str(text))
    try:
        return read_yaml(str(text))
    except ValueError as error:
        raise ConfigurationError(f"{source}: it begins like JSON or YAML and is none: {error}") from None
