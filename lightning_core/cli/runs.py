"""``lightning-core runs``: look at the runs that a store keeps."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import datetime
from typing import Any

import click

from lightning_core.cli.tables import print_table
from lightning_core.emitter import find_final_reward
from lightning_core.plugin import resolve
from lightning_core.store.base import LightningStore
from lightning_core.types import Run

__all__ = ["runs"]


@click.group()
def runs() -> None:
    """List and show stored runs."""


_store_option = click.option(
    "--store",
    "spec",
    envvar="LIGHTNING_CORE_STORE",
    required=True,
    show_envvar=True,
    help="The store, for instance sqlite:///runs.db.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@runs.command("list")
@_store_option
@_json_option
def list_runs(spec: str, as_json: bool) -> None:
    """List the runs of a store, oldest first."""
    found = asyncio.run(_read(spec))
    if as_json:
        click.echo(json.dumps([run.model_dump(mode="json") for run, _ in found], indent=2))
        return
    if not found:
        click.echo("no runs in this store")
        return
    rows = [
        [run.run_id, run.status, _when(run.start_time), _took(run), _counts(counts), _algorithm(run)]
        for run, counts in found
    ]
    print_table(["run", "status", "started", "took", "rollouts", "algorithm"], rows)


@runs.command("show")
@click.argument("run_id", required=False)
@_store_option
@_json_option
@click.option("--rollouts", "number", default=10, show_default=True, help="How many rollouts to print.")
def show_run(run_id: str | None, spec: str, as_json: bool, number: int) -> None:
    """Show one run: its result, metrics and rollouts. Without RUN_ID, the newest.

    Metrics that are tables or lists are left out; --json prints everything.
    """
    found = asyncio.run(_read(spec, run_id))
    if not found:
        wanted = f"no run {run_id!r}" if run_id else "no runs"
        raise click.ClickException(f"{wanted} in this store; `lightning-core runs list` shows what is there")
    run, counts = found[-1]
    if as_json:
        click.echo(run.model_dump_json(indent=2))
        return
    for label, value in [
        ("run", run.run_id),
        ("status", run.status + (f": {run.error}" if run.error else "")),
        ("started", f"{_when(run.start_time)}, took {_took(run)}"),
        ("rollouts", _counts(counts)),
        *((name, _text(value)) for name, value in run.settings.items()),
    ]:
        click.echo(f"{label:<10} {value}")
    result = run.result or {}
    best: dict[str, Any] = result.get("best_resources") or {}
    for name, resource in best.items():
        click.echo(f"\nbest {name} ({resource.get('resource_type')})")
        for key, value in resource.items():
            if key != "resource_type" and value not in (None, {}):
                click.echo(f"  {key}: {_text(value)}")
    metrics: list[dict[str, Any]] = result.get("metrics") or []
    if metrics:
        click.echo()
    for entry in metrics:
        plain = {key: value for key, value in entry.items() if not isinstance(value, dict | list)}
        report = plain.pop("report", None)
        shown = ", ".join(f"{key}={_text(value)}" for key, value in plain.items() if key != "time")
        click.echo(f"metrics    {shown}")
        if report:
            click.echo(f"\n{report}")
    rows = asyncio.run(_rollouts(spec, run.run_id, number))
    if rows:
        click.echo()
        print_table(["rollout", "status", "mode", "attempts", "spans", "reward", "input or error"], rows)


async def _read(spec: str, run_id: str | None = None) -> list[tuple[Run, dict[str, int]]]:
    store = _open(spec)
    try:
        found: list[tuple[Run, dict[str, int]]] = []
        for run in await store.query_runs(run_id):
            statistics = await store.statistics(run_id=run.run_id)
            found.append((run, {str(status): count for status, count in statistics.rollouts.items()}))
        return found
    finally:
        await store.close()


async def _rollouts(spec: str, run_id: str, number: int) -> list[list[str]]:
    store = _open(spec)
    try:
        rows: list[list[str]] = []
        for rollout in await store.query_rollouts(run_id=run_id, limit=number):
            spans = await store.query_spans(rollout.rollout_id, "latest")
            attempts = await store.query_attempts(rollout.rollout_id)
            reward = find_final_reward(spans)
            error = attempts[-1].metadata.get("error") if attempts else None
            rows.append(
                [
                    rollout.rollout_id,
                    rollout.status,
                    rollout.mode or "",
                    str(len(attempts)),
                    str(len(spans)),
                    "" if reward is None else f"{reward:.4g}",
                    _text(error or rollout.input, 60),
                ]
            )
        return rows
    finally:
        await store.close()


def _open(spec: str) -> LightningStore:
    # For stores that would otherwise begin a new one.
    store = resolve("store", spec, must_exist=True)
    if not store.capabilities.durable:
        raise click.ClickException(
            f"a store {spec!r} keeps nothing beyond its process, so there are no runs to look at; "
            "give --store sqlite:///runs.db or another durable one"
        )
    return store


def _text(value: Any, width: int | None = None) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if width is None else " ".join(text.split())
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(Counter(counts).items())) or "none"


def _algorithm(run: Run) -> str:
    return str(run.settings.get("algorithm", ""))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(run: Run) -> str:
    return "?" if run.end_time is None else f"{run.end_time - run.start_time:.1f} s"
