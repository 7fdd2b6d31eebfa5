"""The client over a server passes the conformance suite of stores, whatever store the server has."""

from __future__ import annotations

from typing import ClassVar

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer

from lightning_core.store import InMemoryLightningStore
from lightning_core.testing import PluginPackageConformance
from lightning_core.testing.store import MakeStore, Reopen, StoreConformance


class ServedStore(LightningStoreClient):
    """A client that stops its own server when it is closed."""

    def __init__(self, store):
        self.server = LightningStoreServer(store)
        self.server.start()
        super().__init__(self.server.url, token=self.server.token)

    async def close(self):
        await super().close()
        self.server.stop()
        await self.server.store.close()


class TestOverMemory(StoreConformance):
    machine_examples = 10

    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda clock: ServedStore(InMemoryLightningStore(clock=clock))


class TestOverSqlite(StoreConformance):
    # Each step is a request and several commits.
    machine_examples = 5

    @pytest.fixture
    def make_store(self, tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
        sqlite = pytest.importorskip("lightning_store_sqlite")

        def make(clock):
            path = tmp_path_factory.mktemp("store") / "runs.db"
            return ServedStore(sqlite.SqliteLightningStore(path, synchronous="normal", clock=clock))

        return make

    @pytest.fixture
    def reopen(self) -> Reopen:
        sqlite = pytest.importorskip("lightning_store_sqlite")
        return lambda store, clock: ServedStore(
            sqlite.SqliteLightningStore(store.server.store.location, clock=clock)
        )


class TestPackage(PluginPackageConformance):
    distribution = "lightning-store-http"
    settings: ClassVar[dict] = {
        "store.http": {"url": "http://127.0.0.1:9"},
        "store.https": {"url": "https://127.0.0.1:9"},
    }
