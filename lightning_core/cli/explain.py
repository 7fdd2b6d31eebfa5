"""``lightning-core runs explain``: why a run gave the training data that it gave, rollout by rollout."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import click

from lightning_core.adapter.base import TraceAdapter
from lightning_core.adapter.credit.base import CreditPolicy
from lightning_core.cli.reading import RolloutReport, explain_rollout
from lightning_core.cli.stores import open_store, store_option
from lightning_core.cli.tables import print_table
from lightning_core.errors import PluginError, UnknownRolloutError
from lightning_core.plugin import default_name, resolve
from lightning_core.plugin.manager import plugin_manager
from lightning_core.store.base import LightningStore
from lightning_core.types import RolloutV2, Run

__all__ = ["Summary", "explain_run"]

_PAGE: Final = 200


@dataclass
class Summary:
    """What a run's rollouts give in all."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    calls: int = 0
    left_out: int = 0
    with_ids: int = 0
    with_reward: int = 0
    rewards: int = 0
    landed: int = 0
    usable: int = 0
    usable_rollouts: int = 0
    rewarded_rollouts: int = 0
    problems: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    @property
    def rollouts(self) -> int:
        """How many rollouts were looked at."""
        return self.statuses.total()

    def add(self, report: RolloutReport) -> None:
        """Count a rollout."""
        counted = report.counted
        self.statuses[report.rollout.status] += 1
        self.calls += len(counted)
        self.left_out += len(report.calls) - len(counted)
        self.with_ids += sum(call.has_ids for call in counted)
        self.with_reward += sum(call.reward is not None for call in counted)
        self.rewards += len(report.rewards)
        self.landed += sum(reward.landed for reward in report.rewards)
        self.usable += report.usable
        self.usable_rollouts += report.usable > 0
        self.rewarded_rollouts += report.rewarded
        self.problems.update({(problem.kind, problem.fix) for problem in report.problems})

    def verdict(self) -> str:
        """Say what algorithms would get."""
        if not self.rollouts:
            return "nothing to learn from: the run has no rollouts"
        if not self.rewarded_rollouts:
            return "nothing to learn from: no rollout succeeded with a reward"
        if not self.usable:
            return (
                "nothing to train on: no rollout succeeded with a call that has token ids and a reward. "
                f"{self.rewarded_rollouts} of {self.rollouts} succeeded with a reward, which is enough for algorithms "
                "that only compare rewards, such as search"
            )
        return (
            f"{self.usable} of {self.calls} calls, in {self.usable_rollouts} of {self.rollouts} rollouts, can be "
            "trained on: they have token ids and a reward, and their rollout succeeded"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            "type": "summary",
            "rollouts": dict(self.statuses),
            "calls": self.calls,
            "left_out": self.left_out,
            "with_token_ids": self.with_ids,
            "with_reward": self.with_reward,
            "rewards": self.rewards,
            "landed": self.landed,
            "usable_calls": self.usable,
            "usable_rollouts": self.usable_rollouts,
            "rewarded_rollouts": self.rewarded_rollouts,
            "verdict": self.verdict(),
            "problems": [
                {"kind": kind, "fix": fix, "rollouts": count}
                for (kind, fix), count in self.problems.most_common()
            ],
        }


@click.command("explain")
@click.argument("run_id", metavar="RUN")
@store_option
@click.option("--rollout", "rollout_id", help="Only this rollout.")
@click.option(
    "--credit",
    "credit_spec",
    help="How rewards are assigned: the name of a credit, or an import path. [default: first_occurrence]",
)
@click.option("--problems", "only_problems", is_flag=True, help="Print only rollouts that have a problem.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines: each rollout, then the summary.")
def explain_run(
    run_id: str,
    spec: str,
    rollout_id: str | None,
    credit_spec: str | None,
    only_problems: bool,
    as_json: bool,
) -> None:
    """Say what a run gave to train on, rollout by rollout, and what is missing.

    For each rollout: its LLM calls, their token ids and rewards, which reward landed on which call and why, and for
    every problem what to do about it. Then a summary. The latest attempt of each rollout is looked at.
    """
    credit = resolve("credit", credit_spec)
    if credit.needs_group:
        raise click.UsageError(
            f"credit {credit.name!r} compares rollouts, and each is explained by itself; choose another with --credit"
        )
    summary = Summary()

    async def explain() -> None:
        async for report in _reports(spec, run_id, rollout_id, credit):
            summary.add(report)
            if report.problems or not only_problems:
                _print(report, as_json)

    asyncio.run(explain())
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
    else:
        _print_summary(summary)


async def _reports(
    spec: str, run_id: str, rollout_id: str | None, credit: CreditPolicy
) -> AsyncIterator[RolloutReport]:
    store = open_store(spec)
    try:
        found = await store.query_runs(run_id)
        if not found:
            raise click.ClickException(
                f"no run {run_id!r} in this store; `lightning-core runs list` shows what is there"
            )
        adapter = _adapter(found[0], credit)
        async for rollout in _rollouts(store, run_id, rollout_id):
            attempts, spans = await asyncio.gather(
                store.query_attempts(rollout.rollout_id), store.query_spans(rollout.rollout_id, "latest")
            )
            yield explain_rollout(rollout, attempts, spans, credit, adapter)
    finally:
        await store.close()


async def _rollouts(store: LightningStore, run_id: str, rollout_id: str | None) -> AsyncIterator[RolloutV2]:
    if rollout_id is not None:
        try:
            rollout = await store.get_rollout_by_id(rollout_id)
        except UnknownRolloutError:
            rollout = None
        if rollout is None or rollout.run_id != run_id:
            raise click.ClickException(f"run {run_id!r} has no rollout {rollout_id!r}")
        yield rollout
        return
    offset = 0
    while page := await store.query_rollouts(run_id=run_id, limit=_PAGE, offset=offset):
        offset += len(page)
        for rollout in page:
            yield rollout


def _adapter(run: Run, credit: CreditPolicy) -> TraceAdapter[Any] | None:
    """Return an adapter that knows credits, and so calls and rewards: that of the run, else the usual one."""
    names = plugin_manager().names("adapter")
    for name in (run.settings.get("adapter"), "triplet"):
        if isinstance(name, str) and name in names:
            with suppress(PluginError):
                return resolve("adapter", {"type": name, "reward_match": credit})
    return None


def _print(report: RolloutReport, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False))
        return
    rollout = report.rollout
    spans = "1 span" if report.spans == 1 else f"{report.spans} spans"
    attempts = "1 attempt" if report.attempts == 1 else f"{report.attempts} attempts"
    mode = f"{rollout.mode}, " if rollout.mode else ""
    click.secho(f"rollout {rollout.rollout_id}: {rollout.status}, {mode}{attempts}, {spans}", bold=True)
    if report.error is not None:
        click.echo(f"error: {' '.join(report.error.split())}")
    rows = _rows(report)
    if rows:
        print_table(["span", "", "model", "tokens", "token ids", "reward", "why"], rows)
    for problem in report.problems:
        click.secho(f"problem: {problem.text}", fg="yellow")
        click.echo(f"    fix: {problem.fix}")
    click.echo()


def _rows(report: RolloutReport) -> list[list[str]]:
    rows: list[tuple[int, list[str]]] = []
    for call in report.calls:
        ids = [part for part, where in (("prompt", call.prompt_ids), ("answer", call.response_ids)) if where]
        counts = ["?" if count is None else str(count) for count in (call.input_tokens, call.output_tokens)]
        rows.append(
            (
                call.place,
                [
                    f"#{call.place} {call.span}",
                    "call",
                    call.model or "?",
                    "+".join(counts),
                    " and ".join(ids) or "none",
                    "" if call.reward is None else f"{call.reward:.4g}",
                    call.reason or "" if call.left_out is None else f"left out: {call.left_out}",
                ],
            )
        )
    for reward in report.rewards:
        value = "none" if reward.value is None else f"{reward.value:.4g}"
        where = "landed" if reward.landed else "landed nowhere"
        rows.append(
            (
                reward.place,
                [f"#{reward.place} {reward.span}", "reward", "", "", "", value, f"{where}: {reward.reason}"],
            )
        )
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _print_summary(summary: Summary) -> None:
    click.secho("summary", bold=True)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items()))
    left_out = f", and {summary.left_out} left out" if summary.left_out else ""
    for label, value in [
        ("rollouts", statuses or "none"),
        (
            "calls",
            f"{summary.calls}: {summary.with_ids} with token ids, {summary.with_reward} with a reward{left_out}",
        ),
        ("rewards", f"{summary.rewards}: {summary.landed} landed on a call"),
    ]:
        click.echo(f"{label:<10} {value}")
    for (kind, fix), count in summary.problems.most_common():
        rollouts = "1 rollout" if count == 1 else f"{count} rollouts"
        click.secho(f"problem    {rollouts}: {kind}", fg="yellow")
        click.echo(f"    fix: {fix}")
    click.secho(summary.verdict(), fg=None if summary.usable else "red")
    if not summary.usable and default_name("adapter") is None:
        click.echo(
            "no adapter is installed that gives an algorithm its data: pip install lightning-adapter-triplet"
        )
