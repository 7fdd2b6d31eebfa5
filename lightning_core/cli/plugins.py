"""``lightning-core plugins``: what is installed, whether it works, and what it can be told."""

from __future__ import annotations

import difflib
import json
from typing import Any

import click

from lightning_core.cli.tables import print_table
from lightning_core.errors import UnknownPluginError
from lightning_core.plugin.catalog import DEFAULTS
from lightning_core.plugin.component import KINDS, Component
from lightning_core.plugin.describing import default_text, type_name
from lightning_core.plugin.discovery import Entry, Problem, disabled_by
from lightning_core.plugin.manager import plugin_manager

__all__ = ["plugins"]


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Import every plugin; exit with 1 if anything is wrong.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, check: bool) -> None:
    """List the installed components. No plugin is imported, unless --check is given."""
    if ctx.invoked_subcommand is not None:
        if as_json or check:
            raise click.UsageError("give the options to the subcommand")
        return
    manager = plugin_manager()
    found = _listing()
    problems = manager.check() if check else manager.inventory.problems
    if as_json:
        click.echo(json.dumps({"plugins": found, "problems": [_as_dict(one) for one in problems]}, indent=2))
    else:
        rows = [[one["kind"], one["name"], one["provider"], one["status"], one["summary"]] for one in found]
        print_table(["KIND", "NAME", "PROVIDER", "STATUS", "SUMMARY"], rows)
        if problems:
            click.echo()
        for problem in problems:
            print_problem(problem)
        if check and not problems:
            click.echo("\neverything can be loaded")
    if check and problems:
        ctx.exit(1)


@plugins.command()
@click.argument("component", metavar="KIND.NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(component: str, as_json: bool) -> None:
    """Show one component: what it is, who provides it, and its settings."""
    kind, _, name = component.partition(".")
    manager = plugin_manager()
    if kind not in KINDS or not name:
        known = [f"{of}.{named}" for of, named in manager.inventory.entries]
        suffix = [key for key in known if key.endswith(f".{component}")]
        close = suffix or difflib.get_close_matches(component, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the kinds are {', '.join(KINDS)}"
        raise UnknownPluginError(f"{component!r} is not of the form KIND.NAME; {hint}")
    entry = manager.find(kind, name)
    loaded = manager.load(kind, name)
    details = _details(entry, loaded)
    if as_json:
        click.echo(json.dumps(details, indent=2))
        return
    click.secho(f"{entry.key}", bold=True)
    if loaded.summary:
        click.echo(loaded.summary)
    click.echo()
    click.echo(f"provider   {entry.provider} ({entry.target})")
    if loaded.aliases:
        click.echo(f"names      {', '.join((loaded.name, *loaded.aliases))}")
    if loaded.from_url is not None:
        click.echo(f"URL        {name}://...")
    click.echo()
    settings: list[dict[str, str]] = details["settings"]
    if not settings:
        click.echo("It takes no settings.")
        return
    rows = [[one["name"], one["type"], one["default"], one["description"]] for one in settings]
    print_table(["SETTING", "TYPE", "DEFAULT", "DESCRIPTION"], rows)


def print_problem(problem: Problem) -> None:
    """Print what is wrong, and what to do about it."""
    click.secho(f"problem: {problem.distribution} {problem.version}: {problem.message}", fg="red")
    if problem.fix:
        click.echo(f"    fix: {problem.fix}")


def _listing() -> list[dict[str, Any]]:
    inventory = plugin_manager().inventory
    listed: list[dict[str, Any]] = []
    for key, entry in inventory.entries.items():
        pattern = disabled_by(*key)
        status = "available" if pattern is None else f"disabled by {pattern}"
        listed.append(_item(entry, entry.provider, status))
    for key, claims in inventory.conflicts.items():
        if key not in inventory.entries:
            pattern = disabled_by(*key)
            status = "conflict" if pattern is None else f"disabled by {pattern}"
            listed.append(_item(claims[0], " | ".join(claim.provider for claim in claims), status))
    order = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(listed, key=lambda one: (order[one["kind"]], one["name"]))


def _item(entry: Entry, provider: str, status: str) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "provider": provider,
        "target": entry.target,
        "builtin": entry.builtin,
        "default": entry.name in DEFAULTS[entry.kind],
        "status": status,
        "summary": entry.summary,
    }


def _as_dict(problem: Problem) -> dict[str, str]:
    return {
        "distribution": problem.distribution,
        "version": problem.version,
        "entry": problem.entry,
        "message": problem.message,
        "fix": problem.fix,
    }


def _details(entry: Entry, component: Component[Any]) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": component.name,
        "aliases": list(component.aliases),
        "summary": component.summary,
        "distribution": entry.distribution,
        "version": entry.version,
        "target": entry.target,
        "url": component.from_url is not None,
        "settings": [
            {
                "name": field.alias or name,
                "type": type_name(field.annotation),
                "default": default_text(field),
                "description": " ".join((field.description or "").replace("``", "").split()),
            }
            for name, field in component.config.model_fields.items()
        ],
    }
