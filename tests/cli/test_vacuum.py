"""``lightning-core store vacuum``: what is old is deleted when that is asked for, and never otherwise."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightning_core.cli import main
from lightning_core.cli.moments import parse_moment
from lightning_core.store.base import StoreStatistics
from lightning_core.types import Run

sqlite = pytest.importorskip(
    "lightning_store_sqlite", reason="a vacuum needs a durable store, which is a plugin"
)

NOW = datetime(2026, 3, 1, 12).astimezone().timestamp()
DAY = 86400.0
TODAY = time.time()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("30d", NOW - 30 * DAY),
        ("2w", NOW - 14 * DAY),
        ("36h", NOW - 1.5 * DAY),
        ("90m", NOW - 5400),
        ("0s", NOW),
        (" 10s ", NOW - 10),
        ("2026-01-31", datetime(2026, 1, 31).astimezone().timestamp()),
        ("2026-01-31 12:30", datetime(2026, 1, 31, 12, 30).astimezone().timestamp()),
        ("2026-01-31T12:00:00+01:00", 1769857200.0),
        ("2026-01-31T11:00:00Z", 1769857200.0),
    ],
)
def test_moments_are_ages_or_dates(text: str, moment: float):
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", "did you mean 30d"),
        ("", "neither an age such as 30d"),
        ("30 days", "neither"),
        ("-1d", "neither"),
        ("1.5d", "neither"),
        ("1y", "neither"),
        ("yesterday", "neither"),
        ("20260131", "did you mean 20260131d"),
        ("01.02.2026", "neither"),
        ("2026-02-30", "is no date"),
        ("2026-01-31T25:00", "is no date"),
        ("2026-03-02", "is in the future"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_moment(text, NOW)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a rollout and a run that have ended long ago, and others that have not."""
    path = tmp_path / "runs.db"
    now = TODAY - 100 * DAY

    async def fill() -> None:
        nonlocal now
        filled = sqlite.SqliteLightningStore(path, clock=lambda: now)
        for run in ("old", "new"):
            now = TODAY - (100 if run == "old" else 1) * DAY
            await filled.save_run(Run(run_id=f"run-{run}", status="failed", start_time=now, end_time=now))
            done = await filled.start_rollout(run, run_id=f"run-{run}", worker_id=run)
            await filled.update_attempt(done.rollout_id, done.attempt.attempt_id, status="succeeded")
            await filled.enqueue_rollout("waiting", run_id=f"run-{run}")
        await filled.save_run(Run(run_id="run-open", start_time=TODAY - 100 * DAY))
        await filled.close()

    asyncio.run(fill())
    return f"sqlite:///{path}"


def vacuum(store: str, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(
        main, ["store", "vacuum", "--store", store, "--before", "30d", *arguments], input=answer
    )


def counted(url: str) -> StoreStatistics:
    async def count() -> Any:
        opened = sqlite.SqliteLightningStore(url, clock=lambda: TODAY)
        statistics = await opened.statistics()
        await opened.close()
        return statistics

    return asyncio.run(count())


WILL = "1 rollout with their attempts and spans, 1 run, 1 worker"


def test_a_dry_run_says_what_would_go_and_deletes_nothing(store: str):
    before = counted(store)
    result = vacuum(store, "--dry-run")
    assert result.exit_code == 0
    assert WILL in result.output
    assert "nothing was deleted" in result.output
    assert counted(store) == before


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_it_asks_and_no_answer_is_no(store: str, answer: str):
    before = counted(store)
    result = vacuum(store, answer=answer)
    assert result.exit_code == 1
    assert "Delete them?" in result.output
    assert counted(store) == before


@pytest.mark.parametrize(("arguments", "answer"), [(["--yes"], None), ([], "y\n")])
def test_it_says_what_it_has_deleted(store: str, arguments: list[str], answer: str | None):
    result = vacuum(store, *arguments, answer=answer)
    assert result.exit_code == 0
    assert WILL in result.output
    assert "deleted 1 rollout, 1 attempt, 0 spans, 0 resources, 1 run and 1 worker" in result.output
    left = counted(store)
    assert (left.rollouts, left.runs, left.workers) == ({"succeeded": 1, "queuing": 2}, 2, 1)


def test_runs_that_could_be_resumed_are_named(store: str):
    assert "run run-open began before that and has not succeeded" in vacuum(store, "--dry-run").output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--store", "memory", "--before", "1d", "--yes"], 1, "keeps nothing beyond its process"),
        (["--store", "sqlite:///none.db", "--before", "30", "--yes"], 2, "did you mean 30d"),
        (["--store", "sqlite:///none.db", "--yes"], 2, "Missing option '--before'"),
        (["--store", "sqlite:///none.db", "--before", "1d", "--yes"], 1, "none.db"),
    ],
)
def test_bad_input_is_answered_in_a_line_and_makes_no_store(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["store", "vacuum", *arguments])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
