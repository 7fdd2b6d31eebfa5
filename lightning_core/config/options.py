"""Options for what constructors take, read by jsonargparse from type hints and docstrings."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from lightning_core.config.files import KeyPath
from lightning_core.config.nullable import nullable_str
from lightning_core.config.parts import Part, installed
from lightning_core.config.signatures import Parameter
from lightning_core.config.values import Given, Text, blamed, dotted, merged, settled
from lightning_core.errors import ConfigurationError
from lightning_core.plugin.catalog import PLURALS
from lightning_core.plugin.component import Kind
from lightning_core.plugin.describing import default_text, type_name
from lightning_core.plugin.resolution import default_name

if TYPE_CHECKING:
    from lightning_core.config.command_line import Section

__all__ = ["Options"]

_KEY: Final = re.compile(r'^Parser key "(?P<key>[^"]+)":\s*(?P<problem>.*)', re.DOTALL)
# What it says of an input may be a key.
_PYDANTIC: Final = re.compile(r"^\d+ validation errors? for \S+ (?P<first>.)(?P<rest>.*?) \[type=.*$")


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the lists of plugins."""


class Options:
    """The options of some constructors that are no parts.

    Args:
        sections: The constructors.
        parameters: What they take.
    """

    def __init__(self, sections: Sequence[Section], parameters: Mapping[KeyPath, Parameter]) -> None:
        self._sections = sections
        self._parameters = parameters
        self._parser = self._build()
        self.values: list[KeyPath] = [tuple(key.split(".")) for key in self._parser.get_defaults().keys()]  # noqa: SIM118 - no mapping
        self.flags: set[KeyPath] = set()
        self.switches: set[KeyPath] = set()
        self.open_ended: set[KeyPath] = set()
        for key in self.values:
            if key not in parameters:
                # It lies inside of another's value.
                continue
            members = _members(parameters[key].annotation)
            if {bool, "bool"} & {*members}:
                self.flags.add(key)
            if {*members} <= {bool, "bool", type(None), "None"}:
                self.switches.add(key)
            if any(_has_keys(member) for member in members):
                self.open_ended.add(key)

    def read(self, given: Iterable[Given]) -> dict[KeyPath, Any]:
        """Return the values of all options, those that were not given too.

        Args:
            given: What the user wrote, lower layers first.

        Raises:
            ConfigurationError: If a value is of a wrong type, or one is missing.
        """
        base, arguments = Namespace(), list[str]()
        written: dict[str, str] = {}
        for one in given:
            option, value = dotted(one.key), one.value
            written[option] = one.source
            if isinstance(value, Text):
                if nullable_str(value) is None and self._may_be_none(one.key):
                    value = Text("null")
                arguments.append(f"--{option}{'+' if one.append else ''}={value}")
            elif isinstance(value, Mapping):
                arguments.append(f"--{option}={json.dumps(value, default=str)}")
            elif value is None and not self._may_be_none(one.key):
                raise ConfigurationError(blamed(one.source, f"{option}: a value is needed, not null"))
            else:
                base[option] = value
        try:
            found = self._parser.instantiate(self._parser.parse_args(arguments, namespace=base))
        except ArgumentError as error:
            raise ConfigurationError(self._worded(str(error), written)) from None
        known = {key[:length] for key in self.values for length in range(1, len(key) + 1)}
        return {key: found[dotted(key)] for key in self._parameters if key in known}

    def raw(self, key: KeyPath, given: Iterable[Given]) -> Any:
        """Return the value of one parameter as the user wrote it, lower layers first."""
        tree: dict[str, Any] = {}
        for one in given:
            annotation = self._parameters[key].annotation if one.key == key else Any
            value = settled(one.value, annotation)
            if isinstance(one.value, Text) and isinstance(value, str):
                # Quotes in it are its own.
                value = str(one.value)
            if one.append:
                value = [*tree.get("value", self._parameters[key].default or ()), value]
            tree = merged(tree, ("value", *one.key[len(key) :]), value)
        return tree.get("value")

    def _worded(self, message: str, written: Mapping[str, str]) -> str:
        """Word an error of jsonargparse in terms of what the user wrote."""
        found = _KEY.match(message)
        if found is None:
            return " ".join(message.split())
        key, problem = found["key"], found["problem"]
        source = written.get(key, "")
        for option, where in written.items():
            if option.startswith(f"{key}.") or key.startswith(f"{option}."):
                source = source or where
        parameter = self._parameters.get(tuple(key.split(".")))
        value = problem.rpartition("value: ")[2]
        if problem.startswith("Does not validate against any of the Union") and parameter is not None:
            wanted = parameter.annotation
            wanted = wanted.replace("None", "none") if isinstance(wanted, str) else type_name(wanted)
            problem = f"expected {wanted}, got {value}"
        problem = re.sub(r"<(?:class|enum) '(?:[\w.]*\.)?(\w+)'>", r"\1", " ".join(problem.split()))
        problem = _PYDANTIC.sub(lambda match: match["first"].lower() + match["rest"], problem)
        problem = re.sub(r"^Expected (?:an? (?!member))?(.*)\. Got value: ", r"expected \1, got ", problem)
        return blamed(source, f"{key}: {problem}")

    def _may_be_none(self, key: KeyPath) -> bool:
        parameter = self._parameters.get(key)
        if parameter is None or parameter.default is None or isinstance(parameter.annotation, str):
            return True
        return bool({None, type(None), Any, inspect.Parameter.empty} & {*_members(parameter.annotation)})

    def help(self, parts: Mapping[KeyPath, Part], *, files_by_position: bool, **settings: Any) -> str:
        """Return the text of ``--help``, with the settings of the parts that are chosen.

        Args:
            parts: The parameters that take parts.
            files_by_position: Whether configuration files are given without ``--config``.
            settings: More for the parser.
        """
        usage = "%(prog)s CONFIG ... [OPTIONS]" if files_by_position else "%(prog)s [OPTIONS]"
        parser = self._build(usage=usage, **settings)
        if not files_by_position:
            _explain(parser, "--config", "FILE", "A file of YAML, JSON or TOML. Of several, later ones win.")
        _explain(
            parser, "--print_config", None, "Print the configuration, with all that could be set, and exit."
        )
        kinds = dict[Kind, None]()
        for key, parameter in self._parameters.items():
            group = parser.groups[key[0]] if len(key) > 1 and key[0] in parser.groups else parser
            option = f"--{dotted(key)}"
            if key in parts:
                kinds[parts[key].kind] = None
                _explain_part(group, option, parts[key])
            elif parameter.kind != "value":
                _explain(group, option, parameter.kind.upper(), parameter.doc)
        lists = [_listing(f"installed {PLURALS[kind]}:", installed(kind)) for kind in kinds]
        parser.epilog = "\n\n".join(lists)
        return parser.format_help().replace("``", "")

    def _build(self, **settings: Any) -> Any:
        # Its types are not complete.
        parser: Any = ArgumentParser(
            exit_on_error=False, formatter_class=_Formatter, default_env=False, **settings
        )
        for section in self._sections:
            own = (section.name,) if section.name else ()
            skip: set[str | int] = {
                key[-1]
                for key, parameter in self._parameters.items()
                if key[:-1] == own and parameter.kind != "value"
            }
            if inspect.isclass(section.make):
                parser.add_class_arguments(
                    section.make, section.name or None, instantiate=False, fail_untyped=False, skip=skip
                )
            else:
                parser.add_function_arguments(
                    section.make, section.name or None, fail_untyped=False, skip=skip
                )
        for action in parser._actions:
            if action.dest in (parser.groups or ()):
                # A file for one group: files are for the whole configuration here.
                action.help = argparse.SUPPRESS
        return parser


def _explain(group: Any, option: str, metavar: str | None, text: str) -> None:
    """Add an option to the help alone."""
    shape: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
    group.add_argument(
        option, default=argparse.SUPPRESS, help=" ".join(text.split()).replace("%", "%%"), **shape
    )


def _explain_part(group: Any, option: str, part: Part) -> None:
    default = default_name(part.kind)
    more = f" {option}+ adds one." if part.parameter.many else f" (default: {default or 'none'})"
    _explain(group, option, "NAME", f"{part.parameter.doc} One of the {PLURALS[part.kind]} below.{more}")
    for choice in part.choices:
        for name, field in choice.config.model_fields.items() if choice.config else ():
            written = field.alias or name
            about = f"(type: {type_name(field.annotation)}, default: {default_text(field)})"
            _explain(
                group,
                f"--{dotted((*choice.key, written))}",
                written.upper(),
                f"{choice.type}: {field.description or ''} {about}",
            )


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(annotation) for inner in _members(member))
    return tuple(annotation.split(" | ")) if isinstance(annotation, str) else (annotation,)


def _has_keys(annotation: Any) -> bool:
    """Whether values of a type have keys of their own: mappings, and objects that are made from settings."""
    origin = typing.get_origin(annotation) or annotation
    if not inspect.isclass(origin):
        return False
    if issubclass(origin, Mapping):
        return True
    # Of a class, jsonargparse makes an object with the settings below its key.
    return not issubclass(origin, Enum) and origin.__module__.partition(".")[0] not in sys.stdlib_module_names


def _listing(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"  {name:<{width}}  {summary}".rstrip() for name, summary in rows] or ["  none"]
    return "\n".join([title, *lines])
