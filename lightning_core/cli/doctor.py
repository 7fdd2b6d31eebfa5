"""``lightning-core doctor``: looks for what is wrong with this installation, and says how to put it right."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import click
import importlib_metadata

import lightning_core
from lightning_core.cli.doctor_run import run
from lightning_core.errors import PluginError
from lightning_core.plugin.catalog import DEFAULTS, FIRST_PARTY
from lightning_core.plugin.component import Kind
from lightning_core.plugin.discovery import (
    CORE,
    DISABLE_VARIABLE,
    canonical,
    disabled_by,
    distributions,
    metadata_field,
)
from lightning_core.plugin.manager import plugin_manager
from lightning_core.plugin.resolution import default_name

__all__ = ["Finding", "doctor", "find_strangers", "telemetry"]

DEPENDENCIES: Final = ("pluggy", "pydantic", "opentelemetry-sdk", "packaging", "click")
EXPORTING: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
"""Variables that send telemetry somewhere, if the user's own tracer provider follows them."""
NOT_FOR_ROLLOUTS: Final = ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER")
"""Variables that thin out telemetry, from which the tracers of lightning-core keep rollouts free."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; a problem comes with its fix."""

    level: Literal["ok", "note", "problem"]
    text: str
    fix: str = ""


@click.group(invoke_without_command=True)
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check this installation. Exits with 1 when something is wrong; every problem comes with its fix."""
    if ctx.invoked_subcommand is None:
        _check_installation(ctx)


doctor.add_command(run)


def _check_installation(ctx: click.Context) -> None:
    sections: dict[str, Iterable[Finding]] = {
        "Python": _python(),
        "lightning-core": [*_installation(), *find_strangers()],
        "Defaults of Trainer": _defaults(),
        "Plugins": _plugins(),
        "OpenTelemetry": telemetry(),
    }
    problems = 0
    for title, findings in sections.items():
        click.secho(title, bold=True)
        for finding in findings:
            color = {"ok": None, "note": "yellow", "problem": "red"}[finding.level]
            click.secho(f"  {finding.level + ':':<9}{finding.text}", fg=color)
            if finding.fix:
                click.echo(f"      fix: {finding.fix}")
            problems += finding.level == "problem"
    click.echo()
    if problems:
        click.secho(f"{problems} problem{'s' if problems > 1 else ''} found", fg="red", bold=True)
        ctx.exit(1)
    click.secho("nothing is wrong", fg="green")


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    where = (
        f"{platform.python_implementation()} {version} on {platform.platform(terse=True)}: {sys.executable}"
    )
    if sys.version_info < (3, 11):  # noqa: UP036 - a package can be put on the path of an older Python
        yield Finding("problem", where, "lightning-core needs Python 3.11 or newer")
    else:
        yield Finding("ok", where)


def _installation() -> Iterator[Finding]:
    package = _package_folder()
    yield Finding("ok", f"lightning-core {lightning_core.__version__} is imported from {package}")
    for name in DEPENDENCIES:
        try:
            yield Finding("ok", f"{name} {importlib_metadata.version(name)}")
        except importlib_metadata.PackageNotFoundError:
            yield Finding("problem", f"{name} is not installed", f"pip install {name}")


def find_strangers() -> Iterator[Finding]:
    """Look for the unrelated ``lightning-core`` 0.x, and for anything else that shadows this package.

    Another project owns that name on the public index, and the import name too. Installing it by mistake
    replaces this package, or hides it.
    """
    reinstall = (
        "pip uninstall -y lightning-core, until none is left; then install this project as its README says"
    )
    installed = [found for found in distributions() if canonical(metadata_field(found, "Name")) == CORE]
    if not installed:
        yield Finding(
            "problem",
            "no distribution lightning-core is installed: the package is imported from a bare folder",
            "install it from the repository: pip install -e .",
        )
    for found in installed:
        where = found.locate_file("")
        version = metadata_field(found, "Version")
        if version.split(".")[0] == "0":
            yield Finding(
                "problem",
                f"{where} holds lightning-core {version}, an unrelated project of the same name",
                reinstall,
            )
        elif version != lightning_core.__version__:
            yield Finding(
                "problem",
                f"{where} says that lightning-core {version} is installed, and "
                f"{lightning_core.__version__} is imported",
                reinstall,
            )
    here = _package_folder()
    folders = dict.fromkeys(Path(entry or os.curdir).resolve() / "lightning_core" for entry in sys.path)
    for folder in folders:
        if folder != here and (folder / "__init__.py").is_file():
            yield Finding(
                "problem",
                f"another package lightning_core is in {folder}; depending on the folder that Python starts in, "
                "that one is imported",
                f"remove it, or take {folder.parent} off the path",
            )


def _package_folder() -> Path:
    return Path(lightning_core.__file__).resolve().parent


def _defaults() -> Iterator[Finding]:
    manager = plugin_manager()
    for kind, names in DEFAULTS.items():
        if kind in ("engine", "credit"):
            continue
        label = "hooks" if kind == "hook" else kind
        chosen = default_name(kind)
        if chosen is None:
            yield Finding("ok", f"{label}: none{_why_none(kind, names)}")
            continue
        try:
            manager.load(kind, chosen)
        except PluginError as error:
            yield Finding("problem", f"{label}: {chosen}, which cannot be loaded", str(error))
            continue
        better = "" if chosen == names[0] else f" ({_not_chosen(kind, names[0])})"
        yield Finding("ok", f"{label}: {chosen}{better}")


def _why_none(kind: Kind, names: tuple[str, ...]) -> str:
    return f" ({_not_chosen(kind, names[0])}; an algorithm that needs one will say so)" if names else ""


def _not_chosen(kind: Kind, name: str) -> str:
    if (kind, name) in plugin_manager().inventory.entries:
        return f"{name} is disabled by {disabled_by(kind, name)}"
    return f"{name} is not installed: pip install {FIRST_PARTY[kind][name]}"


def _plugins() -> Iterator[Finding]:
    manager = plugin_manager()
    problems = manager.check()
    entries = [entry for entry in manager.inventory.entries.values() if not entry.builtin]
    for entry in entries:
        pattern = disabled_by(entry.kind, entry.name)
        if pattern is not None:
            yield Finding("note", f"{entry.key} of {entry.provider} is disabled by {pattern}")
        elif not any(problem.entry == entry.key for problem in problems):
            yield Finding("ok", f"{entry.key} of {entry.provider}")
    for problem in problems:
        yield Finding(
            "problem",
            f"{problem.entry} of {problem.distribution} {problem.version}: {problem.message}",
            problem.fix,
        )
    for pattern in manager.idle_patterns():
        if any(problem.entry == pattern for problem in problems):
            continue
        yield Finding("note", f"{pattern!r} in {DISABLE_VARIABLE} matches nothing that is installed")
    if not entries and not problems:
        yield Finding("ok", "none is installed")


def telemetry() -> Iterator[Finding]:
    """Record a span as the tracers do, and report the ``OTEL_*`` variables that have a say."""
    from lightning_core.emitter.context import private_provider

    lengthy, many = "x" * 100_000, 1_000
    span = private_provider().get_tracer("lightning_core.doctor").start_span("doctor")
    span.set_attribute("lengthy", lengthy)
    for number in range(many):
        span.set_attribute(f"attribute.{number}", number)
    recorded = cast("Mapping[str, object]", getattr(span, "attributes", None) or {})
    span.end()
    variables = sorted(name for name in os.environ if name.startswith("OTEL_"))
    if recorded.get("lengthy") != lengthy or len(recorded) != many + 1:
        yield Finding(
            "problem",
            "spans of rollouts are not recorded whole",
            f"unset {', '.join(variables)}"
            if variables
            else "reinstall opentelemetry-sdk: pip install -U opentelemetry-sdk",
        )
    else:
        yield Finding("ok", "spans of rollouts are recorded whole, and nothing is exported by default")
    for name in variables:
        value = os.environ[name]
        if name in EXPORTING:
            yield Finding(
                "note",
                f"{name}={value} sends spans of your own tracer provider there; none of ours without it",
            )
        elif name in NOT_FOR_ROLLOUTS or name.endswith("_LIMIT"):
            yield Finding("note", f"{name}={value} limits your own telemetry, not that of rollouts")
        elif name == "OTEL_PYTHON_CONTEXT" and value != "contextvars_context":
            yield Finding(
                "problem",
                f"{name}={value}: rollouts that run at the same time are kept apart by contextvars",
                f"unset {name}",
            )
