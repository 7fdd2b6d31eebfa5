"""Command lines made from constructors: of any classes, and of ``lightning-core run``."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from lightning_core.errors import ConfigurationError, LightningError, PluginError

if TYPE_CHECKING:
    from lightning_core.config.files import KeyPath
    from lightning_core.config.parts import Part
    from lightning_core.config.signatures import Parameter
    from lightning_core.config.sources import Request
    from lightning_core.config.values import Given

__all__ = ["CommandLine", "Section", "lightning_cli"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

WRONG_USAGE: Final = 2
"""The exit code where a command line or a configuration is wrong."""


@dataclass(frozen=True)
class Section:
    """A class or a function whose parameters become options.

    Attributes:
        name: Begins their names; empty for options without.
        make: The class or function.
    """

    name: str
    make: Callable[..., Any]


class CommandLine:
    """Reads options, variables and configuration files for the parameters of constructors.

    Options win over variables, these over files, these over defaults. Reading it imports jsonargparse.

    Args:
        sections: What takes the parameters.
        prog: What the program is called; ``None``: after the running script.
        description: What it is for.
        files_by_position: Whether configuration files are given as they are, and not by ``--config``.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        *,
        prog: str | None = None,
        description: str | None = None,
        files_by_position: bool = False,
    ) -> None:
        from lightning_core.config.options import Options
        from lightning_core.config.signatures import read_parameters
        from lightning_core.config.sources import Keys

        self.prog = prog or Path(sys.argv[0]).name
        self._description = description
        self._by_position = files_by_position
        self._sections = sections
        self._parts: Mapping[KeyPath, Part] = {}
        self._parameters: dict[KeyPath, Parameter] = {
            (*_prefix(section), name): parameter
            for section in sections
            for name, parameter in read_parameters(section.make).items()
        }
        self._options = Options(sections, self._parameters)
        named = [section.name for section in sections if section.name]
        own = {key for key, parameter in self._parameters.items() if parameter.kind != "value"}
        self._keys = Keys(
            {*self._options.values, *own},
            {*self._options.open_ended, *(key for key in own if self._parameters[key].kind != "secret")},
            self._options.flags,
            self._options.switches,
            section=named[0] if len(sections) == 1 and named else None,
        )

    @contextmanager
    def errors(self) -> Generator[None]:
        """Print an error of ours, and exit with 2 without a traceback."""
        try:
            yield
        except LightningError as error:
            logger.debug("where it was found", exc_info=True)
            sys.stderr.write(f"{self.prog}: error: {error}\n")
            raise SystemExit(WRONG_USAGE) from None

    def parse(
        self, arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the keywords for each section, in order. With ``--help`` or ``--print-config``, print and exit.

        Args:
            arguments: The arguments of the command line; ``None``: those of this process.
            environ: The variables; ``None``: those of this process.

        Raises:
            LightningError: If an option, a variable or a key does not exist, or a value is missing or wrong.
        """
        from lightning_core.config.sources import read_arguments
        from lightning_core.config.values import NO_VALUE

        arguments = sys.argv[1:] if arguments is None else arguments
        environ = os.environ if environ is None else environ
        if {"-h", "--help"} & {*arguments}:
            sys.stdout.write(self._help(arguments, environ))
            raise SystemExit(0)
        request = read_arguments(arguments, self._keys, files_by_position=self._by_position)
        given = self._given(request, environ)
        parts = self._parts = self._chosen(given)
        for part in parts.values():
            part.check()
        for one in given:
            if one.value is NO_VALUE and self._keys.leaf(one.key) not in parts:
                raise ConfigurationError(f"{one.source} needs a value")
        missing = self._missing(given)
        if missing and not request.print_config:
            raise ConfigurationError(self._wanted(missing[0]))
        values = self._values(given, parts, complete=not missing)
        if request.print_config:
            sys.stdout.write(self._written(given, parts, values))
            raise SystemExit(0)
        for key, part in parts.items():
            if part.given:
                values[key] = part.argument()
        return [
            {key[-1]: value for key, value in values.items() if key[:-1] == _prefix(section)}
            for section in self._sections
        ]

    def make(self, section: Section, settings: Mapping[str, Any]) -> Any:
        """Make what a section is for.

        Args:
            section: One of the sections.
            settings: What :meth:`parse` has returned for it, or more.

        Raises:
            LightningError: If the constructor raises one; of an error about a part, the message says where that stands.
            ConfigurationError: If it is a model, and the settings do not fit it.
        """
        from pydantic import ValidationError

        try:
            return section.make(**settings)
        except PluginError as error:
            message = str(error)
            mine = [part for key, part in self._parts.items() if key[:-1] == _prefix(section)]
            placed = next((text for part in mine if (text := part.placed(message)) is not None), message)
            raise type(error)(placed) from error
        except ValidationError as error:
            # Inputs stay out of the message: they may be keys.
            wrong = [
                f"{'.'.join((section.name, *map(str, item['loc'])))}: {item['msg'][0].lower()}{item['msg'][1:]}"
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            raise ConfigurationError("; ".join(wrong)) from error

    def _given(self, request: Request, environ: Mapping[str, str]) -> list[Given]:
        """Return everything that the user wrote, lower layers first; in each, what chooses parts before settings."""
        from lightning_core.config.files import read_file
        from lightning_core.config.sources import (
            CONFIG_VARIABLE,
            read_config,
            read_options,
            read_variables,
        )

        by_variable = environ.get(CONFIG_VARIABLE)
        files = request.files or ([by_variable] if by_variable else [])
        found: list[Given] = []
        for layer, path in enumerate(files):
            found += read_config(read_file(path), self._keys, layer)
        found += read_variables(environ, self._keys, len(files))
        found += read_options(request.options, self._keys, len(files) + 1)

        def order(one: Given) -> tuple[int, bool]:
            rest = one.key[len(self._keys.leaf(one.key) or ()) :]
            return one.layer, bool(rest) and rest[-1] != "type"

        return sorted(found, key=order)

    def _chosen(self, given: Iterable[Given]) -> dict[KeyPath, Part]:
        from lightning_core.config.parts import Part

        parts = {
            key: Part(key, parameter)
            for key, parameter in self._parameters.items()
            if parameter.kind == "part"
        }
        for one in given:
            leaf = self._keys.leaf(one.key)
            if leaf in parts:
                parts[leaf].take(one)
        return parts

    def _missing(self, given: Iterable[Given]) -> list[KeyPath]:
        """The parameters that need a value and have none."""
        there = {one.key[:length] for one in given for length in range(1, len(one.key) + 1)}
        return [
            key
            for key, parameter in self._parameters.items()
            # An object with settings of its own may be made of their defaults.
            if parameter.required and key not in there and key in self._keys.leaves
        ]

    def _wanted(self, key: KeyPath) -> str:
        from lightning_core.config.sources import variable
        from lightning_core.config.values import dotted

        doc = self._parameters[key].doc
        return (
            f"{dotted(key)} is needed: give --{dotted(key)}, the variable {variable(key)}, or a configuration file "
            f"that has it{'. ' + doc if doc else ''}"
        )

    def _values(
        self, given: Sequence[Given], parts: Mapping[KeyPath, Part], *, complete: bool
    ) -> dict[KeyPath, Any]:
        """Return the values of what was given, parts left out."""
        from pydantic import SecretStr

        from lightning_core.config.resources import read_resources

        values: dict[KeyPath, Any] = {}
        plain: list[Given] = []
        for key, parameter in self._parameters.items():
            mine = [one for one in given if one.key[: len(key)] == key]
            if not mine or key in parts:
                continue
            if parameter.kind == "resources":
                values[key] = read_resources(key, mine)
            elif parameter.kind == "secret":
                values[key] = None if mine[-1].value is None else SecretStr(str(mine[-1].value))
            else:
                plain += mine
        if complete:
            read = self._options.read(plain)
            values |= {key: read[key] for one in plain for key in read if one.key[: len(key)] == key}
        return values

    def _written(
        self, given: Sequence[Given], parts: Mapping[KeyPath, Part], values: Mapping[KeyPath, Any]
    ) -> str:
        from lightning_core.config.writing import Entry, write_config

        title = f"A configuration of {self.prog}."
        sections: list[tuple[str, list[Entry]]] = []
        for section in self._sections:
            entries: list[Entry] = []
            for key, parameter in self._parameters.items():
                if key[:-1] != _prefix(section):
                    continue
                mine = [one for one in given if one.key[: len(key)] == key]
                value = self._options.raw(key, mine) if parameter.kind == "value" else values.get(key)
                entries.append(Entry(key, parameter, bool(mine), value, parts.get(key)))
            sections.append((section.name, entries))
        return write_config(title, sections)

    def _help(self, arguments: Sequence[str], environ: Mapping[str, str]) -> str:
        """Return the help. What is wrong with the rest of the command line is no reason to give none."""
        from lightning_core.config.sources import Request, read_arguments

        request = Request()
        with suppress(LightningError):
            request = read_arguments(arguments, self._keys, files_by_position=self._by_position)
        parts = self._chosen(())
        with suppress(LightningError):
            parts = self._chosen(self._given(request, environ))
        for part in parts.values():
            try:
                part.check()
            except LightningError:
                part.choices.clear()
        return self._options.help(
            parts, files_by_position=self._by_position, prog=self.prog, description=self._description
        )


def _prefix(section: Section) -> KeyPath:
    return (section.name,) if section.name else ()


@overload
def lightning_cli(first: type[T], /) -> T: ...
@overload
def lightning_cli(first: type[T], second: type[T2], /) -> tuple[T, T2]: ...
@overload
def lightning_cli(first: type[T], second: type[T2], third: type[T3], /) -> tuple[T, T2, T3]: ...
@overload
def lightning_cli(*classes: type[Any]) -> Any: ...
def lightning_cli(*classes: type[Any]) -> Any:
    """Make objects as the command line says, and so scripts whose every setting is an option.

    A parameter of a constructor becomes an option named after the class and itself, such as ``--trainer.n_runners``;
    hyphens do as well as underscores. For a single class the class may be left out. Type hints say what an option
    takes, docstrings what it is for. Parts of a :class:`~lightning_core.Trainer`, and other parameters of such types,
    take the name of an installed plugin, a URL or an import path, and their settings are options too::

        python train.py --trainer.store sqlite --trainer.store.path runs.db --trainer.n_runners 4

    ``--config FILE`` reads a file of YAML, JSON or TOML, with a mapping for each class. The environment variable of
    ``--trainer.store.path`` is ``LIGHTNING_CORE_TRAINER__STORE__PATH``. Options win over variables, and these over
    files. ``--help`` lists everything, also what is installed; ``--print-config`` prints the configuration.

    Args:
        classes: What to make.

    Returns:
        The object that was made of a single class, else a tuple of one for each class, in order.

    Raises:
        ConfigurationError: If there are no classes, or two of the same name.
        SystemExit: With 2 if the command line is wrong, after a message; with 0 after ``--help`` and
            ``--print-config``.
    """
    names = [cls.__name__.lower() for cls in classes]
    if not classes:
        raise ConfigurationError("lightning_cli needs at least one class")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"lightning_cli got two classes called {twice[0]}, whose options would be the same; rename one of them"
        )
    sections = [Section(name, cls) for name, cls in zip(names, classes, strict=True)]
    line = CommandLine(sections, description=_summary(classes))
    with line.errors():
        made = [
            line.make(section, settings) for section, settings in zip(sections, line.parse(), strict=True)
        ]
    return made[0] if len(made) == 1 else tuple(made)


def _summary(classes: Iterable[type[Any]]) -> str:
    """The first lines of docstrings."""
    return "\n".join((inspect.getdoc(cls) or cls.__name__).partition("\n")[0] for cls in classes)
