"""The SQLite store passes the conformance suite of stores, and its package that of packages."""

from __future__ import annotations

import pytest
from lightning_store_sqlite import SqliteLightningStore

from lightning_core.testing import PluginPackageConformance
from lightning_core.testing.store import MakeStore, Reopen, StoreConformance


class TestSqliteLightningStore(StoreConformance):
    # Each step is several commits.
    machine_examples = 25

    @pytest.fixture
    def make_store(self, tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
        def make(clock):
            path = tmp_path_factory.mktemp("store") / "runs.db"
            return SqliteLightningStore(path, synchronous="normal", clock=clock)

        return make

    @pytest.fixture
    def reopen(self) -> Reopen:
        return lambda store, clock: SqliteLightningStore(store.location, clock=clock)


class TestPackage(PluginPackageConformance):
    distribution = "lightning-store-sqlite"
