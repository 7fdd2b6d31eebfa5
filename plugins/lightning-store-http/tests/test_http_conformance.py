"""The client over a server passes the conformance suite of stores, whatever store the server has."""

from __future__ import annotations

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer

from lightning_core.store import InMemoryLightningStore
from lightning_core.testing import PluginPackageConformance
from lightning_core.testing.store import MakeStore, StoreConformance


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


class TestPackage(PluginPackageConformance):
    distribution = "lightning-store-http"
    settings = {"store.http": {"url": "http://127.0.0.1:9"}, "store.https": {"url": "https://127.0.0.1:9"}}
