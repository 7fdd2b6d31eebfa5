"""``lightning-core runs``: look at the runs that a store keeps."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from lightning_core.cli.explain import explain_run
from lightning_core.cli.export import WHAT, JsonLines, What, export_records, open_parquet
from lightning_core.cli.moments import format_moment
from lightning_core.cli.results import counts_text, print_fields, print_outcome, value_text
from lightning_core.cli.stores import open_store, store_option
from lightning_core.cli.tables import print_table
from lightning_core.emitter import find_final_reward
from lightning_core.trainer.owner import is_held
from lightning_core.types import Run

__all__ = ["runs"]

# Failures beyond these are not looked into by `show`.
_MOST_FAILURES = 1000


@click.group()
def runs() -> None:
    """List, show, explain and export stored runs."""


runs.add_command(explain_run)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@runs.command("list")
@store_option
@_json_option
def list_runs(spec: str, as_json: bool) -> None:
    """List the runs of a store, oldest first.

    An orphaned run has no end, and its process is gone: Trainer.fit(..., resume=True) goes on with it.
    """
    found = asyncio.run(_read(spec))
    if as_json:
        click.echo(json.dumps([_as_dict(run) for run, _ in found], indent=2))
        return
    if not found:
        click.echo("no runs in this store")
        return
    rows = [
        [
            *(run.run_id, "orphaned" if _is_orphaned(run) else run.status, str(run.resumed or "")),
            *(format_moment(run.start_time), _took(run), counts_text(counts), _algorithm(run)),
        ]
        for run, counts in found
    ]
    print_table(["run", "status", "resumed", "started", "took", "rollouts", "algorithm"], rows)


@runs.command("show")
@click.argument("run_id", required=False)
@store_option
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
        click.echo(json.dumps(_as_dict(run), indent=2))
        return
    reasons = asyncio.run(_reasons(spec, run.run_id))
    fields = [
        ("run", run.run_id),
        ("status", _status(run)),
        ("started", f"{format_moment(run.start_time)}, took {_took(run)}"),
        *([("resumed", f"{run.resumed} times" if run.resumed > 1 else "once")] if run.resumed else []),
        ("rollouts", counts_text(counts)),
        *([("failures", counts_text(reasons))] if reasons else []),
        *((name, value_text(value)) for name, value in run.settings.items()),
    ]
    print_fields(fields)
    result = run.result or {}
    print_outcome(result.get("best_resources") or {}, result.get("metrics") or [])
    rows = asyncio.run(_rollouts(spec, run.run_id, number))
    if rows:
        click.echo()
        print_table(["rollout", "status", "mode", "attempts", "spans", "reward", "input or error"], rows)


async def _read(spec: str, run_id: str | None = None) -> list[tuple[Run, dict[str, int]]]:
    store = open_store(spec)
    try:
        found: list[tuple[Run, dict[str, int]]] = []
        for run in await store.query_runs(run_id):
            statistics = await store.statistics(run_id=run.run_id)
            found.append((run, {str(status): count for status, count in statistics.rollouts.items()}))
        return found
    finally:
        await store.close()


@runs.command("export")
@click.argument("run_id", metavar="RUN")
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="JSON Lines, or Parquet with lightning-core[parquet].",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file. [default: standard output, for JSON Lines]",
)
@click.option(
    "--what",
    type=click.Choice(WHAT),
    default="all",
    show_default=True,
    help="Rollouts with their attempts and reward, single attempts or spans, or rollouts with all of these.",
)
def export_run(
    run_id: str, spec: str, form: Literal["jsonl", "parquet"], output: Path | None, what: What
) -> None:
    """Write a run out, one record for each rollout, attempt or span, whatever its size.

    Times are seconds since the epoch. In a Parquet file, nested values are JSON text.
    """
    if form == "parquet":
        if output is None:
            raise click.UsageError("a Parquet file cannot go to the standard output; give --output FILE")
        parquet = open_parquet(output, what)
        try:
            asyncio.run(_export(spec, run_id, what, parquet.write))
            parquet.close()
        except BaseException:
            parquet.abandon()
            raise
    elif output is None:
        asyncio.run(_export(spec, run_id, what, JsonLines(sys.stdout).write))
    else:
        part = output.with_name(f"{output.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                asyncio.run(_export(spec, run_id, what, JsonLines(file).write))
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


async def _export(spec: str, run_id: str, what: What, write: Callable[[list[dict[str, Any]]], None]) -> None:
    store = open_store(spec)
    try:
        if not await store.query_runs(run_id):
            raise click.ClickException(
                f"no run {run_id!r} in this store; `lightning-core runs list` shows what is there"
            )
        async for records in export_records(store, run_id, what):
            write(records)
    finally:
        await store.close()


async def _reasons(spec: str, run_id: str) -> dict[str, int]:
    """Count why rollouts did not succeed."""
    store = open_store(spec)
    try:
        reasons: Counter[str] = Counter()
        for rollout in await store.query_rollouts(
            run_id=run_id, status=["failed", "cancelled"], limit=_MOST_FAILURES
        ):
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            reasons[str((attempt and attempt.reason) or rollout.status)] += 1
        return dict(reasons)
    finally:
        await store.close()


async def _rollouts(spec: str, run_id: str, number: int) -> list[list[str]]:
    store = open_store(spec)
    try:
        rows: list[list[str]] = []
        for rollout in await store.query_rollouts(run_id=run_id, limit=number):
            spans = await store.query_spans(rollout.rollout_id, "latest")
            attempts = await store.query_attempts(rollout.rollout_id)
            reward = find_final_reward(spans)
            latest = attempts[-1] if attempts else None
            error = latest and (latest.metadata.get("error") or latest.metadata.get("detail"))
            reason = latest.reason if latest is not None and rollout.is_final else None
            rows.append(
                [
                    rollout.rollout_id,
                    rollout.status + (f": {reason}" if reason else ""),
                    rollout.mode or "",
                    str(len(attempts)),
                    str(len(spans)),
                    "" if reward is None else f"{reward:.4g}",
                    value_text(error or rollout.input, 60),
                ]
            )
        return rows
    finally:
        await store.close()


def _is_orphaned(run: Run) -> bool:
    return run.status == "running" and not is_held(run)


def _status(run: Run) -> str:
    if _is_orphaned(run):
        seen = f", last heard of {format_moment(run.owner.heartbeat_time)}" if run.owner else ""
        return f"running, and orphaned: its process is gone{seen}; to go on: resume={run.run_id!r}"
    return run.status + (f": {run.error}" if run.error else "")


def _as_dict(run: Run) -> dict[str, Any]:
    return {**run.model_dump(mode="json"), "orphaned": _is_orphaned(run)}


def _algorithm(run: Run) -> str:
    return str(run.settings.get("algorithm", ""))


def _took(run: Run) -> str:
    return "?" if run.end_time is None else f"{run.end_time - run.start_time:.1f} s"
