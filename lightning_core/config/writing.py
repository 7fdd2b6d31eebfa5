"""Writes a configuration as YAML that can be read again: what was given, and as comments all that was not."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from os import PathLike, fspath
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from lightning_core.config.files import KeyPath, add_numbers
from lightning_core.config.parts import Choice, Part, installed
from lightning_core.config.signatures import Parameter
from lightning_core.config.sources import variable
from lightning_core.plugin.resolution import default_name

__all__ = ["Entry", "write_config"]

_WIDTH: Final = 100
_INDENT: Final = "  "
_SECRETS: Final = re.compile(r"(?:^|_)(?:api_?key|token|secret|password)$", re.IGNORECASE)
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]*@")
_HIDDEN: Final = "**********"


@dataclass(frozen=True)
class Entry:
    """One parameter, and what it has been given.

    Attributes:
        key: Its key.
        parameter: The parameter.
        given: Whether it was given a value.
        value: That value.
        part: The part or parts, where it takes these.
    """

    key: KeyPath
    parameter: Parameter
    given: bool = False
    value: Any = None
    part: Part | None = None


def write_config(title: str, sections: Iterable[tuple[str, Iterable[Entry]]]) -> str:
    """Return a configuration as YAML. Keys for services are left out.

    Args:
        title: What it is for.
        sections: The name of each section, empty for the top level, and what belongs into it.
    """
    lines = [f"# {title}", "# What is commented out has its default.", ""]
    for name, entries in sections:
        indent = _INDENT if name else ""
        if name:
            lines.append(f"{name}:")
        for entry in entries:
            if entry.parameter.deprecated and not entry.given:
                continue
            lines += [f"{indent}{line}".rstrip() for line in _entry(entry)]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _is_secret(annotation: Any) -> bool:
    """Whether a setting is for a key, by its type."""
    return any(cls.__name__ in str(annotation) for cls in (SecretStr, SecretBytes))


def _sounds_secret(name: str, value: Any) -> bool:
    """Whether a value whose type says nothing is a key, by its name."""
    return isinstance(value, str | SecretStr) and _SECRETS.search(name) is not None


def _entry(entry: Entry) -> Iterator[str]:
    parameter, name = entry.parameter, entry.parameter.name
    yield from _comment(parameter.doc)
    if entry.part is not None:
        found = ", ".join(each for each, _ in installed(entry.part.kind)) or "nothing"
        yield from _comment(f"Installed: {found}.")
        yield from _part(entry.part, name)
    elif _is_secret(parameter.annotation) or _sounds_secret(name, entry.value):
        yield from _secret(entry.key)
    elif entry.given:
        yield from _yaml({name: _plain(entry.value)}).splitlines()
    elif parameter.required:
        yield f"# {name}: is needed"
    else:
        yield from _commented(_yaml({name: _plain(parameter.default)}).splitlines())


def _part(part: Part, name: str) -> Iterator[str]:
    if not part.given:
        default = None if part.parameter.many else default_name(part.kind)
        if default is None:
            yield f"# {name}: {'[]' if part.parameter.many else 'null'}"
            return
        choice = Choice(part.key, part.kind, default)
        choice.check()
        yield from _commented(_choice(choice, name))
    elif not part.parameter.many:
        yield from _choice(part.choices[0], name)
    elif not part.choices:
        yield f"{name}: []"
    else:
        yield f"{name}:"
        for choice in part.choices:
            first, *others = _choice(choice, "")
            yield f"{_INDENT}- {first}"
            yield from (f"{_INDENT}  {line}" for line in others)


def _choice(choice: Choice, name: str) -> Iterator[str]:
    """Write one part; without a name, as an item of a list."""
    chosen = choice.type and _CREDENTIALS.sub("", choice.type)
    settings = _settings(choice)
    if name and (choice.type is None or not settings):
        yield from _yaml({name: chosen}).splitlines()
        return
    indent = _INDENT if name else ""
    if name:
        yield f"{name}:"
    yield from (indent + line for line in _yaml({"type": chosen}).splitlines())
    if chosen != choice.type:
        yield f"{indent}# User and password of the URL are left out here."
    yield from (indent + line for line in settings)


def _settings(choice: Choice) -> list[str]:
    lines: list[str] = []
    fields: Mapping[str, FieldInfo] = {} if choice.config is None else choice.config.model_fields
    values = _readable(choice)
    for name, field in fields.items():
        written = field.alias or name
        lines += _comment(field.description or "")
        if _is_secret(field.annotation):
            lines += _secret((*choice.key, written))
        elif written in values or name in values:
            lines += _yaml({written: values.get(written, values.get(name))}).splitlines()
        elif name in choice.read:
            lines.append(f"# {written}: is a part of the URL")
        elif field.is_required():
            lines.append(f"# {written}: is needed")
        else:
            lines += _commented(_yaml({written: _plain(_default(field), enum="value")}).splitlines())
    known = {*fields, *(field.alias for field in fields.values())}
    for name, value in values.items():
        if name in known:
            continue
        lines += _yaml({name: value}).splitlines()
    return lines


def _default(field: FieldInfo) -> Any:
    if field.default_factory_takes_validated_data:
        return "depends on the others"
    return field.get_default(call_default_factory=True)


def _readable(choice: Choice) -> dict[str, Any]:
    """Return the settings that were given, without keys for services, also inside of them."""
    if choice.config is None:
        return _plain(choice.settings)
    model = choice.config.model_validate({**choice.read, **choice.settings})
    dumped = model.model_dump(mode="json", by_alias=True)
    names = {
        name: written
        for name, field in choice.config.model_fields.items()
        if (written := field.alias or name) in choice.settings or name in choice.settings
    }
    extra = {name: name for name in model.model_extra or {}}
    return {name: _plain(dumped[name]) for name in (*names.values(), *extra)}


def _secret(key: KeyPath) -> Iterator[str]:
    yield f"# {key[-1]} is a secret, and never written here. Give it as {variable(key)}."


def _plain(value: Any, enum: Literal["name", "value"] = "name") -> Any:
    """Return a value of what YAML knows, without keys for services. Constructors are given the names of enums."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Enum):
        return _plain(getattr(value, enum))
    if isinstance(value, PathLike):
        return fspath(cast("PathLike[str]", value))
    if isinstance(value, Mapping):
        return {
            str(name): _plain(inner)
            for name, inner in cast("Mapping[Any, Any]", value).items()
            if inner != _HIDDEN and not _sounds_secret(str(name), inner)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in cast("Iterable[Any]", value)]
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _comment(text: str) -> list[str]:
    text = " ".join(text.replace("``", "").split())
    return [
        f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def _commented(lines: Iterable[str]) -> Iterator[str]:
    return (line if line.startswith("#") else f"# {line}" for line in lines)


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=_WIDTH)


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value.strip() else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    add_numbers(Dumper)
    return Dumper
