"""Reads a configuration file, and keeps on which line each of its keys stands."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from lightning_core.errors import ConfigurationError

__all__ = ["ConfigFile", "add_numbers", "read_file", "read_yaml"]

KeyPath = tuple[str, ...]

# Deeper than any setting is: an alias may even hold itself.
_DEEPEST: Final = 20


@dataclass(frozen=True)
class ConfigFile:
    """What a configuration file says.

    Attributes:
        path: The file, as the user wrote it.
        values: Its content.
        lines: The line, from 1, on which the value of a key begins; without those of formats that do not tell.
    """

    path: str
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict[KeyPath, int])

    def where(self, key: KeyPath) -> str:
        """Say where a key stands: ``run.yaml, line 3``."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}, line {self.lines[key]}" if key else self.path


def read_file(path: str) -> ConfigFile:
    """Read a file as YAML (``.yaml``, ``.yml``), JSON (``.json``) or TOML (``.toml``).

    Raises:
        ConfigurationError: If there is no such file, its name tells no format, or its content is of another one.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _READERS:
        raise ConfigurationError(
            f"{path}: a configuration file ends in {', '.join(sorted(_READERS))}, which says how to read it"
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: it is not encoded in UTF-8: {error}") from None
    values, lines = _READERS[suffix](text, path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: it must hold keys and their values, not a {type(values).__name__}")
    return ConfigFile(path, cast("dict[str, Any]", values), lines)


def read_yaml(text: str) -> Any:
    """Read YAML, and so JSON, of which ``1e-3`` is a number too.

    Raises:
        ValueError: If it is none.
    """
    yaml = _yaml()
    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(_yaml_problem(error)) from None


def _read_yaml_file(text: str, path: str) -> tuple[Any, dict[KeyPath, int]]:
    yaml = _yaml()
    try:
        node = yaml.compose(text, _loader())
        values = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: it is no YAML: {_yaml_problem(error)}") from None
    lines: dict[KeyPath, int] = {}
    if node is not None:
        _collect_lines(node, path, (), lines)
    return values, lines


def _read_json_file(text: str, path: str) -> tuple[Any, dict[KeyPath, int]]:
    yaml = _yaml()
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{path}: it is no JSON: {error}") from None
    lines: dict[KeyPath, int] = {}
    try:
        _collect_lines(yaml.compose(text, _loader()), path, (), lines)
    except yaml.YAMLError:
        # Nearly all JSON is YAML. Of the rest, no lines are known.
        lines.clear()
    return values, lines


def _read_toml_file(text: str, path: str) -> tuple[Any, dict[KeyPath, int]]:
    try:
        return tomllib.loads(text), {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: it is no TOML: {error}") from None


_READERS: Final[Mapping[str, Callable[[str, str], tuple[Any, dict[KeyPath, int]]]]] = {
    ".json": _read_json_file,
    ".toml": _read_toml_file,
    ".yaml": _read_yaml_file,
    ".yml": _read_yaml_file,
}


def _collect_lines(node: Any, path: str, key: KeyPath, lines: dict[KeyPath, int]) -> None:
    if len(key) > _DEEPEST:
        return
    if isinstance(node, _yaml().SequenceNode):
        for number, item in enumerate(cast("list[Any]", node.value)):
            lines[(*key, str(number))] = item.start_mark.line + 1
            _collect_lines(item, path, (*key, str(number)), lines)
    if not isinstance(node, _yaml().MappingNode):
        return
    pairs: list[tuple[Any, Any]] = node.value
    for name, value in pairs:
        below = (*key, str(name.value))
        line = name.start_mark.line + 1
        if below in lines and name.tag != "tag:yaml.org,2002:merge":
            # YAML would take the last one in silence.
            raise ConfigurationError(
                f"{path}, line {line}: {'.'.join(below)} stands there already, in line {lines[below]}"
            )
        lines[below] = line
        _collect_lines(value, path, below, lines)


def _yaml() -> Any:
    # It ships no types.
    import yaml

    return yaml


def _yaml_problem(error: Any) -> str:
    """Say in one line what is wrong with YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else problem


@cache
def _loader() -> Any:
    class Loader(_yaml().SafeLoader):
        pass

    add_numbers(Loader)
    return Loader


def add_numbers(reader_or_writer: Any) -> None:
    """Have a loader or a dumper of YAML take ``1e-3`` for a number, as YAML 1.2 and JSON do."""
    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
