"""Runs that resume: nothing that has ended runs again, and the result is that of a run without interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lightning_core.bridge import run_sync

pytest.importorskip(
    "lightning_store_sqlite", reason="runs that resume need a durable store, which is a plugin"
)

SCRIPT = Path(__file__).with_name("resumed_script.py")
KILLED = -signal.SIGKILL


class Script:
    """The training script in a folder of its own."""

    def __init__(self, folder: Path, algorithm: str) -> None:
        self.folder = folder
        self.algorithm = algorithm
        self.errors = ""

    def run(
        self, how: str = "no", after: int = 0, *, resume: str = "no", code: int = 0
    ) -> dict[str, Any] | None:
        """Run it and return its result, or ``None`` if it ended before."""
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(self.folder), self.algorithm, how, str(after), resume],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": "random"},
        )
        self.errors = done.stderr
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else None

    @property
    def calls(self) -> Counter[str]:
        """How often the agent was called with each task and prompt."""
        return Counter((self.folder / "calls").read_text().splitlines())

    def read(self, question: Callable[[Any], Any]) -> Any:
        """Ask the store."""
        from lightning_store_sqlite import SqliteLightningStore

        async def ask() -> Any:
            store = SqliteLightningStore(self.folder / "runs.db", must_exist=True)
            try:
                return await question(store)
            finally:
                await store.close()

        return run_sync(ask())

    def finished(self) -> dict[str, float]:
        """Ids and end times of the rollouts that have succeeded."""
        rollouts = self.read(lambda store: store.query_rollouts(status=["succeeded"]))
        return {rollout.rollout_id: rollout.end_time for rollout in rollouts}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Script]]:
    """Run an algorithm to its end, once for all tests."""

    @cache
    def run(algorithm: str) -> tuple[dict[str, Any], Script]:
        script = Script(tmp_path_factory.mktemp(algorithm), algorithm)
        result = script.run()
        assert result is not None
        return result, script

    return run


def without_times(result: dict[str, Any] | None) -> dict[str, Any]:
    """What must be the same with and without an interruption."""
    assert result is not None
    metrics = [
        {name: value for name, value in entry.items() if name != "time"} for entry in result["metrics"]
    ]
    return {"metrics": metrics, "best": result["best_resources"], "status": result["status"]}


SEARCH = pytest.param(
    "search",
    marks=pytest.mark.skipif(
        find_spec("lightning_algorithm_search") is None, reason="the search is a plugin"
    ),
)


@pytest.mark.parametrize("algorithm", ["drawing", "plain", SEARCH, "baseline"])
def test_a_killed_run_goes_on_where_it_was(algorithm: str, uninterrupted: Any, tmp_path: Path):
    expected, calm = uninterrupted(algorithm)
    stormy = Script(tmp_path, algorithm)
    stormy.run("kill", 7, code=KILLED)
    before = stormy.finished()
    assert len(before) >= 5
    result = stormy.run(resume="1")
    assert without_times(result) == without_times(expected)
    assert result is not None
    # Not a single rollout more: those of the dead process were taken back, not made again.
    assert result["rollouts"] == expected["rollouts"]
    assert result["resumed"] == 1
    # What had ended was left alone, and at most the two under way were called twice.
    after = stormy.finished()
    assert {name: after[name] for name in before} == before
    extra = stormy.calls - calm.calls
    assert calm.calls - stormy.calls == Counter()
    assert 1 <= extra.total() <= 2


@pytest.mark.parametrize("algorithm", ["drawing", SEARCH])
def test_a_run_may_be_killed_again_and_again(algorithm: str, uninterrupted: Any, tmp_path: Path):
    expected, calm = uninterrupted(algorithm)
    stormy = Script(tmp_path, algorithm)
    resume = "no"
    for after in (3, 9):
        stormy.run("kill", after, resume=resume, code=KILLED)
        resume = "1"
    result = stormy.run(resume="1")
    assert without_times(result) == without_times(expected)
    assert result is not None
    assert result["resumed"] == 2
    assert (stormy.calls - calm.calls).total() <= 4


@pytest.mark.parametrize("algorithm", ["plain"])
def test_a_run_that_was_interrupted_can_be_resumed_by_its_id(
    algorithm: str, uninterrupted: Any, tmp_path: Path
):
    expected, calm = uninterrupted(algorithm)
    stormy = Script(tmp_path, algorithm)
    stormy.run("interrupt", 6, code=130)
    assert "to go on from there: resume=" in stormy.errors
    (run,) = stormy.read(lambda store: store.query_runs())
    assert (run.status, run.owner) == ("cancelled", None)
    before = stormy.finished()
    result = stormy.run(resume=run.run_id)
    assert without_times(result) == without_times(expected)
    assert result is not None
    assert result["run_id"] == run.run_id
    assert result["start_time"] == run.start_time
    after = stormy.finished()
    assert {name: after[name] for name in before} == before
    # Those that were cancelled with the process ran again.
    assert result["rollouts"]["cancelled"] in (1, 2)
    assert 1 <= (stormy.calls - calm.calls).total() <= result["rollouts"]["cancelled"]


@pytest.mark.parametrize("algorithm", ["drawing"])
def test_a_run_whose_algorithm_failed_goes_on_when_that_is_put_right(
    algorithm: str, uninterrupted: Any, tmp_path: Path
):
    expected, calm = uninterrupted(algorithm)
    stormy = Script(tmp_path, algorithm)
    stormy.run("error", 3, code=1)
    assert "ZeroDivisionError" in stormy.errors
    assert "to go on from there: resume=" in stormy.errors
    (run,) = stormy.read(lambda store: store.query_runs())
    assert (run.status, run.error) == ("failed", "ZeroDivisionError: the algorithm has failed")
    result = stormy.run(resume="1")
    assert without_times(result) == without_times(expected)
    assert stormy.calls == calm.calls
