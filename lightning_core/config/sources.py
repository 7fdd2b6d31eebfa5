"""Where values come from: options of a command line, environment variables, and files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from lightning_core.config.files import ConfigFile, KeyPath, read_yaml
from lightning_core.config.values import NO_VALUE, Given, Text, dotted
from lightning_core.errors import ConfigurationError

__all__ = [
    "CONFIG_VARIABLE",
    "PREFIX",
    "Keys",
    "Request",
    "read_arguments",
    "read_config",
    "read_options",
    "read_variables",
    "variable",
]

PREFIX: Final = "LIGHTNING_CORE_"
"""Begins the names of variables: ``LIGHTNING_CORE_TRAINER__STORE__PATH`` stands for ``trainer.store.path``."""

CONFIG_VARIABLE: Final = "LIGHTNING_CORE_CONFIG"
"""A configuration file, where the command line names none."""


class Keys:
    """The keys that a command line knows.

    Args:
        values: Those of values.
        open_ended: Those below which there are more keys, which only their part knows.
        flags: Those of values that may be switched on by the option alone.
        switches: Those of them that can be nothing else than on or off.
        section: Begins the keys of a command line for one class, where it may be left out.
    """

    def __init__(
        self,
        values: Iterable[KeyPath],
        open_ended: Iterable[KeyPath] = (),
        flags: Iterable[KeyPath] = (),
        switches: Iterable[KeyPath] = (),
        section: str | None = None,
    ) -> None:
        self.open_ended = frozenset(open_ended)
        self.leaves = frozenset(values) | self.open_ended
        self.flags = frozenset(flags)
        self.switches = frozenset(switches)
        self.groups = frozenset(key[:length] for key in self.leaves for length in range(len(key)))
        self.section = section

    def full(self, key: KeyPath) -> KeyPath:
        """Return a key with the section that may be left out."""
        if self.section is None or key[0] == self.section:
            return key
        return (self.section, *key)

    def leaf(self, key: KeyPath) -> KeyPath | None:
        """Return the leaf that a key is, or lies below of."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.leaves:
                return key[:length] if length == len(key) or key[:length] in self.open_ended else None
        return None

    def below(self, group: KeyPath) -> list[str]:
        """Return the names that may follow a group, in order."""
        return sorted({key[len(group)] for key in self.leaves if key[: len(group)] == group})

    def nearest(self, key: KeyPath) -> KeyPath | None:
        """Return the leaf whose name is nearest to a key that does not exist."""
        names = {dotted(leaf): leaf for leaf in self.leaves}
        close = difflib.get_close_matches(dotted(key), names, 1)
        # A part's own setting is not looked for here, but its part may be misspelt.
        for length in range(len(key) - 1, 0, -1):
            close = close or difflib.get_close_matches(dotted(key[:length]), names, 1, 0.8)
        ends = {name.rpartition(".")[2]: name for name in names}
        close = close or [ends[end] for end in difflib.get_close_matches(key[-1], ends, 1)]
        return names[close[0]] if close else None


@dataclass
class Request:
    """What a command line asks for.

    Attributes:
        files: Configuration files, in order.
        options: Option and value, in order; the value is ``None`` where none follows.
        help: Whether help is wanted.
        print_config: Whether the configuration is to be printed.
    """

    files: list[str] = field(default_factory=list[str])
    options: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    help: bool = False
    print_config: bool = False


def read_arguments(arguments: Sequence[str], keys: Keys, *, files_by_position: bool) -> Request:
    """Sort out the arguments of a command line.

    Raises:
        ConfigurationError: If an argument is neither an option nor, where these go by position, a file.
    """
    request = Request()
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument in ("-h", "--help"):
            request.help = True
            continue
        if not argument.startswith("--") or argument == "--":
            if not files_by_position:
                raise ConfigurationError(f"{argument!r} belongs to no option; options begin with --")
            request.files.append(argument)
            continue
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if name == "print_config":
            request.print_config = True
            continue
        value = text if equals else None
        if value is None and left and not left[0].startswith("--"):
            key = keys.full(tuple(name.split(".")))
            if key not in keys.switches or left[0].lower() in _BOOLEANS:
                value = left.pop(0)
        if name == "config" and (("config",) not in keys.leaves):
            if not value:
                raise ConfigurationError("--config needs a file")
            request.files.append(value)
            continue
        request.options.append((option, value))
    return request


_BOOLEANS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "none"})


def read_options(options: Iterable[tuple[str, str | None]], keys: Keys, layer: int) -> Iterator[Given]:
    """Yield what the options of a command line say.

    Raises:
        ConfigurationError: If an option does not exist.
    """
    for option, text in options:
        name = option.removeprefix("--").replace("-", "_")
        append = name.endswith("+")
        key = keys.full(tuple(name.rstrip("+").split(".")))
        leaf = keys.leaf(key)
        if leaf is not None:
            value: Any = Text(text) if text is not None else Text("true") if key in keys.flags else NO_VALUE
            if value is NO_VALUE and key == leaf:
                raise ConfigurationError(f"{option} needs a value")
            yield Given(key, value, option, layer, append)
        elif key in keys.groups and text is not None:
            yield from _structured(key, text, option, keys, layer)
        else:
            near = keys.nearest(key)
            hint = f"; did you mean --{dotted(near)}?" if near else ""
            raise ConfigurationError(f"{option}: there is no such option{hint} --help lists all of them")


def read_variables(environ: Mapping[str, str], keys: Keys, layer: int) -> Iterator[Given]:
    """Yield what environment variables say.

    Raises:
        ConfigurationError: If a variable has the name of a section, and of no key in it.
    """
    known = {variable(leaf): leaf for leaf in keys.leaves}
    sections = {variable(leaf[:1]) + "__" for leaf in keys.leaves if len(leaf) > 1 or leaf in keys.open_ended}
    for name, text in environ.items():
        if not text:
            # As if it were not set.
            continue
        if name in known:
            yield Given(known[name], Text(text), name, layer)
            continue
        if not name.startswith(tuple(sections)):
            continue
        parts = [known[name[:end]] for end in _cuts(name) if known.get(name[:end]) in keys.open_ended]
        if parts:
            rest = name[len(variable(parts[0])) + 2 :].lower().split("__")
            yield Given((*parts[0], *rest), Text(text), name, layer)
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigurationError(
            f"{name}: there is no such setting; {hint}Take the variable away if it is for something else"
        )


def variable(key: KeyPath) -> str:
    """Return the name of the variable that stands for a key."""
    return PREFIX + "__".join(key).upper()


def _cuts(name: str) -> list[int]:
    """The places of double underscores, the last first."""
    return [place for place in range(len(name) - 1, 0, -1) if name.startswith("__", place)]


def read_config(file: ConfigFile, keys: Keys, layer: int) -> Iterator[Given]:
    """Yield what a configuration file says.

    Raises:
        ConfigurationError: If a key does not exist, or there is no mapping where one is needed.
    """
    yield from _flattened((), file.values, file, keys, layer)


def _place(file: ConfigFile, written: KeyPath, inside: KeyPath) -> str:
    return file.where((*written, *inside))


def _structured(group: KeyPath, text: str, option: str, keys: Keys, layer: int) -> Iterator[Given]:
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: it is no YAML: {error}") from None
    if not isinstance(values, dict):
        names = ", ".join(f"--{dotted((*group, name))}" for name in keys.below(group))
        raise ConfigurationError(f"{option} takes keys and values, such as those of {names}")
    file = ConfigFile(option, cast("dict[str, Any]", values))
    yield from _flattened(group, file.values, file, keys, layer)


def _flattened(
    group: KeyPath, values: Mapping[str, Any], file: ConfigFile, keys: Keys, layer: int
) -> Iterator[Given]:
    for name, value in values.items():
        written = (*group, str(name))
        key = (*group, str(name).replace("-", "_"))
        if not group:
            key = keys.full(key)
        where = file.where(written)
        if key in keys.leaves:
            yield Given(key, value, where, layer, places=partial(_place, file, written))
        elif key in keys.groups:
            if value is None:
                continue
            if not isinstance(value, dict):
                raise ConfigurationError(
                    f"{where}: {dotted(key)} must hold keys and values, not {type(value).__name__}; "
                    f"it takes {', '.join(keys.below(key))}"
                )
            yield from _flattened(key, cast("dict[str, Any]", value), file, keys, layer)
        else:
            known = keys.below(group)
            if not group and keys.section is not None:
                known = sorted({keys.section, *keys.below((keys.section,))})
            close = difflib.get_close_matches(key[-1], known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigurationError(
                f"{where}: there is no key {dotted(written)!r}; {hint}"
                f"{dotted(group) or 'the configuration'} takes {', '.join(known)}"
            )
