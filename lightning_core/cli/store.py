"""``lightning-core store``: serve a store to other machines, and tidy it up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import click

from lightning_core.cli.moments import format_moment, moment_option
from lightning_core.cli.serve import serve
from lightning_core.cli.stores import open_store, store_option
from lightning_core.store.base import StoreStatistics

__all__ = ["store"]

_PAGE = 1000


@click.group()
def store() -> None:
    """Serve a store over HTTP, and look after what it keeps."""


store.add_command(serve)


@store.command()
@store_option
@click.option(
    "--before",
    required=True,
    callback=moment_option,
    metavar="MOMENT",
    help="An age such as 30d or 12h, or a date or time such as 2026-01-31.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def vacuum(spec: str, before: float, dry_run: bool, yes: bool) -> None:
    """Delete what is old. Nothing else ever deletes anything from a store.

    Deletes rollouts that ended before that moment, with their attempts and spans; runs that ended before it;
    workers not heard of since; and resources that nothing uses any more.
    """
    old = asyncio.run(_find_old(spec, before))
    click.echo(
        f"before {format_moment(before)}: {_counted(old.rollouts, 'rollout')} with their attempts and spans, "
        f"{_counted(old.runs, 'run')}, {_counted(old.workers, 'worker')}, and resources that nothing uses any more"
    )
    for run_id in old.open_runs:
        click.secho(
            f"run {run_id} began before that and has not succeeded: if it is resumed, rollouts that are deleted now "
            "run again",
            fg="yellow",
        )
    if dry_run:
        click.echo("nothing was deleted")
        return
    if not yes:
        click.confirm("Delete them?", abort=True)
    deleted = asyncio.run(_vacuum(spec, before))
    click.echo(
        f"deleted {_counted(sum(deleted.rollouts.values()), 'rollout')}, {_counted(deleted.attempts, 'attempt')}, "
        f"{_counted(deleted.spans, 'span')}, {_counted(deleted.resources, 'resource')}, "
        f"{_counted(deleted.runs, 'run')} and {_counted(deleted.workers, 'worker')}"
    )


@dataclass
class _Old:
    """What a vacuum would delete, and the runs that it would leave incomplete."""

    rollouts: int
    runs: int
    workers: int
    open_runs: list[str]


async def _find_old(spec: str, before: float) -> _Old:
    store = open_store(spec)
    try:
        rollouts = offset = 0
        while page := await store.query_rollouts(
            status=["succeeded", "failed", "cancelled"], limit=_PAGE, offset=offset
        ):
            offset += len(page)
            rollouts += sum(rollout.end_time is not None and rollout.end_time < before for rollout in page)
        runs = await store.query_runs()
        ended = [run for run in runs if run.end_time is not None and run.end_time < before]
        workers = [worker.last_heartbeat_time or 0.0 for worker in await store.query_workers()]
        return _Old(
            rollouts=rollouts,
            runs=len(ended),
            workers=sum(seen < before for seen in workers),
            open_runs=[
                run.run_id
                for run in runs
                if run not in ended and run.status != "succeeded" and run.start_time < before
            ],
        )
    finally:
        await store.close()


async def _vacuum(spec: str, before: float) -> StoreStatistics:
    store = open_store(spec)
    try:
        return await store.vacuum(before=before)
    finally:
        await store.close()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
