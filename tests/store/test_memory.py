"""The in-memory store passes the conformance suite of stores."""

from __future__ import annotations

import pytest

from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.testing.store import MakeStore, StoreConformance


class TestInMemoryLightningStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda clock: InMemoryLightningStore(clock=clock)
