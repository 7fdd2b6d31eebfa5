"""The client-server strategy passes the suite, however processes are started and whichever side is in front."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning_store_http import ClientServerExecutionStrategy
from lightning_store_sqlite import SqliteLightningStore

from lightning_core.bridge import run_sync
from lightning_core.store.base import LightningStore
from lightning_core.testing import StrategyConformance
from lightning_core.testing.strategy import MakeStrategy


class TestSpawn(StrategyConformance):
    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        return lambda n_runners: ClientServerExecutionStrategy(n_runners, graceful_seconds=0.5)


class TestFork(StrategyConformance):
    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        return lambda n_runners: ClientServerExecutionStrategy(
            n_runners, start_method="fork", graceful_seconds=0.5
        )


class TestForkserver(StrategyConformance):
    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        return lambda n_runners: ClientServerExecutionStrategy(
            n_runners, start_method="forkserver", graceful_seconds=0.5
        )


class TestRunnersInFront(StrategyConformance):
    """The algorithm has a process, and a durable store behind the server."""

    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        return lambda n_runners: ClientServerExecutionStrategy(
            n_runners, start_method="forkserver", main_process="runner", graceful_seconds=0.5
        )

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LightningStore]:
        store = SqliteLightningStore(str(tmp_path / "runs.db"), synchronous="normal")
        yield store
        run_sync(store.close())
