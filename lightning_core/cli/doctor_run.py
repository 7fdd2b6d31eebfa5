"""``lightning-core doctor run``: one rollout of an agent, and what training on it would miss."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lightning_core.cli.loading import import_from_here, load_agent

if TYPE_CHECKING:
    from lightning_core.trainer.check import CheckReport

__all__ = ["first_task", "run"]

_COLORS = {"ok": None, "warning": "yellow", "problem": "red"}
_SPEC_HELP = "a name, an import path, or JSON with a type and settings"


@click.command()
@click.argument("agent", metavar="MODULE:AGENT")
@click.option(
    "--data",
    required=True,
    metavar="FILE_OR_JSON",
    help="A JSON or JSON Lines file, of which the first item is the task, or the task itself as JSON.",
)
@click.option("--tracer", help=f"Records the rollout: {_SPEC_HELP}.")
@click.option("--adapter", help=f"Makes training data of it: {_SPEC_HELP}.")
@click.option(
    "--algorithm", help="What the rollout is to be good for: what this needs and is missing is a problem."
)
@click.option("--store", help="The store that is to be used later; nothing is written to it.")
@click.option("--llm-proxy", help=f"Stands between the agent and the model: {_SPEC_HELP}.")
@click.option(
    "--endpoint", metavar="URL", help="Base URL of the model for the agent. [default: OPENAI_BASE_URL]"
)
@click.option("--model", help="The model. [default: OPENAI_MODEL, or the first one that the endpoint serves]")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that the rollout may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def run(
    ctx: click.Context,
    agent: str,
    data: str,
    tracer: str | None,
    adapter: str | None,
    algorithm: str | None,
    store: str | None,
    llm_proxy: str | None,
    endpoint: str | None,
    model: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run one rollout of an agent, and report what training on it would miss. Exits with 1 if there is a problem.

    MODULE:AGENT is where the agent can be imported from, also from the working folder. Looked at are calls of a model,
    token ids, the reward, spans, tracer, adapter and settings; each problem comes with its fix.
    """
    from lightning_core.trainer import Trainer

    import_from_here()
    task = first_task(data)
    engine = {"type": "endpoint", "base_url": endpoint, "model": model} if endpoint or model else None
    trainer = Trainer(
        tracer=_spec("--tracer", tracer),
        adapter=_spec("--adapter", adapter),
        algorithm=_spec("--algorithm", algorithm),
        store=_spec("--store", store),
        llm_proxy=_spec("--llm-proxy", llm_proxy),
        engine=engine,
    )
    # What the agent prints would be taken for a part of the JSON.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        report = trainer.check(load_agent(agent), task, timeout_seconds=timeout)
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **report.model_dump(mode="json")}, indent=2))
    else:
        _print(report)
    if not report.ok:
        ctx.exit(1)


def _print(report: CheckReport) -> None:
    click.secho(report.summary(), bold=True)
    for point in report.points:
        head, *others = point.lines()
        click.secho(head, fg=_COLORS[point.level])
        for line in others:
            click.echo(line)


def _spec(option: str, text: str | None) -> Any:
    """Read what describes a part: JSON for one with settings, else as it is."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"it begins like JSON and is none: {error}", param_hint=option) from error


def first_task(data: str) -> Any:
    """Return the first item of a JSON or JSON Lines file, or else what ``data`` itself says as JSON.

    Raises:
        click.BadParameter: If it is neither.
    """
    path = Path(data)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        # Too long for a path, or no path at all.
        is_file = False
    try:
        if not is_file:
            return json.loads(data)
        items = _items(path.read_text(encoding="utf-8"))
    except ValueError as error:
        what = f"the file {data} holds no JSON" if is_file else f"{data!r} is neither a file nor JSON"
        hint = "" if is_file else """; text goes in quotes of its own: --data '"text"'"""
        raise click.BadParameter(f"{what}: {error}{hint}", param_hint="--data") from error
    if not items:
        raise click.BadParameter(f"the file {data} is empty", param_hint="--data")
    return items[0]


def _items(text: str) -> list[Any]:
    """Read a JSON array, a single value, or the first line of JSON Lines."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        lines = (line for line in text.splitlines() if line.strip())
        return [json.loads(line) for line in list(lines)[:1]]
    return cast("list[Any]", value) if isinstance(value, list) else [value]
