"""Writes the generated parts of the pages: ``python docs/generate.py``, with every plugin installed.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. The results are checked in, so that
the pages can be read where they lie; ``tests/docs/test_generated.py`` fails when they are out of date.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from lightning_core import emitter, errors
from lightning_core.plugin import Component
from lightning_core.plugin import builtins as builtin_components
from lightning_core.plugin.catalog import PLURALS
from lightning_core.plugin.component import KINDS

DOORS = ("lightning_core.client", "lightning_core.llm_proxy", "lightning_core.server")
DOCS = Path(__file__).parent
PLUGINS = DOCS.parent / "plugins"
REGION = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w-]+) -->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.DOTALL
)


def first_party() -> dict[str, str]:
    """Return ``kind.name`` to the module that provides it, for every package of this repository."""
    found: dict[str, str] = {}
    for pyproject in sorted(PLUGINS.glob("*/pyproject.toml")):
        with pyproject.open("rb") as file:
            project = tomllib.load(file)["project"]
        found.update(project.get("entry-points", {}).get("lightning_core", {}))
    return found


def provided_by(module: Any) -> Iterator[tuple[str, Component[Any]]]:
    """Yield ``kind.name`` and component for everything that a ``plugin.py`` provides."""
    for kind in KINDS:
        hook = getattr(module, f"lightning_{PLURALS[kind]}", None)
        for component in hook() if hook is not None else ():
            yield f"{kind}.{component.name}", component


def escape(text: str) -> str:
    """Make text of a docstring fit for a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return " ".join(text.split()).replace("|", "\\|")


def type_name(annotation: Any) -> str:
    """Describe a type in the way that it is written."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is not None:
        inner = ", ".join(type_name(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def default_of(field: FieldInfo) -> str:
    """Describe the default of a setting."""
    if field.is_required():
        return "required"
    factory: Any = field.default_factory
    value: Any = field.default if factory is None else factory()
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    return "`secret`" if isinstance(value, SecretStr) else f"`{escape(repr(value))}`"


def settings_table(config: type[BaseModel]) -> str:
    """Return a table of the settings of one component."""
    if not config.model_fields:
        return "It takes no settings.\n"
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in config.model_fields.items():
        rows.append(
            f"| `{field.alias or name}` | `{escape(type_name(field.annotation))}` | {default_of(field)} "
            f"| {escape(field.description or '')} |"
        )
    return "\n".join(rows) + "\n"


def component_section(key: str, component: Component[Any], distribution: str) -> str:
    """Return the section of one component on the settings page."""
    lines = [f"### {key}", "", component.summary, ""]
    provided = f"From `{distribution}`."
    if component.aliases:
        provided += " Also called " + ", ".join(f"`{alias}`" for alias in component.aliases) + "."
    if component.from_url is not None:
        provided += f" Can be written as a URL: `{component.name}:…`."
    return "\n".join([*lines, provided, "", settings_table(component.config)])


def distribution_of(key: str) -> str:
    """Return the folder, and so the distribution, that provides a component."""
    for pyproject in PLUGINS.glob("*/pyproject.toml"):
        if f'"{key}"' in pyproject.read_text():
            return pyproject.parent.name
    return "lightning-core"


def builtin_sections() -> dict[str, str]:
    """Return the sections of the components of the core."""
    return {
        key: component_section(key, component, "lightning-core")
        for key, component in provided_by(builtin_components)
    }


def plugin_section(key: str, module: str) -> str:
    """Return the section of a component of a plugin, which must be installed."""
    name = key.partition(".")[2]
    for provided, component in provided_by(importlib.import_module(module)):
        if provided == key:
            return component_section(key, component, distribution_of(key))
        if provided.partition(".")[0] == key.partition(".")[0] and name in component.aliases:
            return f"### {key}\n\nThe same as `{provided}`.\n"
    raise LookupError(f"{module} does not provide {key}")


def settings() -> str:
    """The settings of all first-party components."""
    sections = builtin_sections()
    sections.update({key: plugin_section(key, module) for key, module in first_party().items()})
    return "\n".join(sections[key] for key in sorted(sections, key=_settings_order))


def _settings_order(key: str) -> tuple[int, str]:
    kind, _, name = key.partition(".")
    return [str(known) for known in KINDS].index(kind), name


def commands(
    command: click.Command | None = None, context: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield every command with its full name."""
    if command is None:
        from lightning_core.cli import main as group

        command, context = group, click.Context(group, info_name="lightning-core")
    assert context is not None
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands(child, click.Context(child, info_name=name, parent=context))


def usage_pieces(command: click.Command) -> Iterator[str]:
    """Yield what may follow a command; click's own rendering differs between its versions."""
    yield "[OPTIONS]"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.metavar or parameter.human_readable_name.upper()
            yield name if parameter.required else f"[{name}]"
    if isinstance(command, click.Group):
        yield "[COMMAND] ..." if command.invoke_without_command else "COMMAND ..."


def command_section(path: str, command: click.Command, context: click.Context) -> str:
    """Return the section of one command."""
    usage = " ".join([path, *usage_pieces(command)])
    lines = [f"## {path}", "", "```text", usage, "```", ""]
    text = inspect.cleandoc(command.help or "").replace("\b\n", "").partition("\f")[0]
    lines += [text.rstrip(), ""]
    if isinstance(command, click.Group):
        names = command.list_commands(context)
        lines += ["Commands: " + ", ".join(f"`{name}`" for name in names) + ".", ""]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        lines += ["| option | meaning |", "|---|---|"]
        for option in options:
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            metavar = "" if option.is_flag else f" `{option.human_readable_name.upper()}`"
            lines.append(f"| {names}{metavar} | {escape(option.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def cli() -> str:
    """Every command with its options."""
    return "\n".join(command_section(*found) for found in commands())


def error_tree() -> str:
    """The tree of errors, as its module draws it."""
    docstring = inspect.getdoc(errors) or ""
    tree = [line[4:] for line in docstring.splitlines() if line.startswith("    ")]
    return "```text\n" + "\n".join(tree) + "\n```\n"


def error_table() -> str:
    """What each error means."""
    rows = ["| error | is also a | meaning |", "|---|---|---|"]
    for name in errors.__all__:
        cls = getattr(errors, name)
        standard = [
            base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception
        ]
        also = ", ".join(f"`{base}`" for base in standard)
        rows.append(
            f"| `{name}` | {also} | {escape((inspect.getdoc(cls) or '').partition(chr(10) * 2)[0])} |"
        )
    return "\n".join(rows) + "\n"


CONSTANTS = {
    "API_VERSION": ("lightning_core.plugin.component", "Version of the plugin interface."),
    "hookimpl": (
        "lightning_core.plugin.markers",
        "Marks a function of a plugin that implements one of the hooks.",
    ),
    # A module of the same name takes its place once it is imported.
    "reward": ("lightning_core.emitter.reward", inspect.getdoc(emitter.reward) or ""),
}
"""Public names that do not describe themselves."""


def public_names() -> str:
    """What ``import lightning_core`` offers."""
    import lightning_core

    rows = ["| name | defined in | what it is |", "|---|---|---|"]
    for name in sorted(lightning_core.__all__, key=str.lower):
        value = getattr(lightning_core, name)
        module = getattr(value, "__module__", None)
        summary = (inspect.getdoc(value) or "").partition("\n\n")[0]
        if name in CONSTANTS:
            module, summary = CONSTANTS[name][0], CONSTANTS[name][1].partition("\n\n")[0]
        rows.append(f"| `{name}` | `{module}` | {escape(summary)} |")
    return "\n".join(rows) + "\n"


def automodule(module: str) -> str:
    """Return the section of a module in the reference."""
    lines = [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}"]
    if module in DOORS:
        # What they lead to is in the reference of its package.
        lines.append("   :no-members:")
    return "\n".join([*lines, "```", ""])


def public_modules(package: str, *, within: bool = False) -> list[str]:
    """Return the public modules of a package of the core, and ``within`` those of the packages in it."""
    parent = importlib.import_module(package)
    names: list[str] = []
    for module in pkgutil.iter_modules(parent.__path__):
        if module.name.startswith("_"):
            continue
        name = f"{package}.{module.name}"
        if not module.ispkg:
            names.append(name)
        elif within:
            names += public_modules(name, within=True)
    return names


def modules(package: str) -> str:
    """The reference of one package of the core; ``core`` means the modules beside the packages."""
    if package == "core":
        names = [name for name in public_modules("lightning_core") if not name.endswith(".errors")]
    elif package == "errors":
        names = ["lightning_core.errors"]
    else:
        names = public_modules(f"lightning_core.{package}", within=True)
    return "\n".join(automodule(name) for name in names)


def plugin_package(package: str) -> str:
    """The section of one first-party package, which must be installed: what it can be imported for."""
    module = importlib.import_module(package)
    lines: list[str] = []
    for name in module.__all__:
        value = getattr(module, name)
        directive = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
        lines.append(f".. auto{directive}:: {package}.{name}")
    return "\n".join([f"## {package}", "", "```{eval-rst}", *lines, "```", ""])


def public_packages(package: str) -> list[str]:
    """Return a first-party package and the public packages inside of it."""
    inside = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [package, *(f"{package}.{found.name}" for found in inside if found.ispkg and found.name[0] != "_")]


def plugin_packages() -> str:
    """The sections of all first-party packages."""
    names = sorted({module.partition(".")[0] for module in first_party().values()})
    return "\n".join(plugin_package(each) for name in names for each in public_packages(name))


REGIONS: dict[str, Callable[[], str]] = {
    "cli": cli,
    "error-table": error_table,
    "error-tree": error_tree,
    "plugin-packages": plugin_packages,
    "public-names": public_names,
    "settings": settings,
}


def pages() -> list[Path]:
    """The pages that have a generated part."""
    return [page for page in sorted(DOCS.rglob("*.md")) if REGION.search(page.read_text())]


def fill(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return REGION.sub(lambda match: match["begin"] + region(match["name"]) + match["end"], text)


def region(name: str) -> str:
    """Return the text of one generated part."""
    if name.startswith("modules-"):
        return modules(name.removeprefix("modules-"))
    return REGIONS[name]()


def main() -> None:
    """Write every page that has a generated part."""
    for page in pages():
        page.write_text(fill(page.read_text()))
        sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
