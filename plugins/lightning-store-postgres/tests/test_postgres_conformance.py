"""The PostgreSQL store passes the conformance suite of stores, and its package that of packages."""

from __future__ import annotations

import os
import time
from itertools import count

import pytest
from lightning_store_postgres import PostgresLightningStore

from lightning_core.testing import PluginPackageConformance
from lightning_core.testing.store import MakeStore, Reopen, StoreConformance

_numbers = count()


def _clock(clock):
    # The usual clock is the server's.
    return None if clock is time.time else clock


class TestPostgresLightningStore(StoreConformance):
    # Each step is several commits.
    machine_examples = 15

    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        def make(clock):
            return PostgresLightningStore(
                postgres_url,
                schema=f"conformance_{os.getpid()}_{next(_numbers)}",
                clock=_clock(clock),
                poll_interval=0.1,
            )

        return make

    @pytest.fixture
    def reopen(self) -> Reopen:
        return lambda store, clock: PostgresLightningStore(
            store.location, clock=_clock(clock), poll_interval=0.1
        )


class TestPackage(PluginPackageConformance):
    distribution = "lightning-store-postgres"

    @pytest.fixture(autouse=True)
    def settings_of_the_server(self, postgres_url: str, schema: str) -> None:
        settings = {"url": postgres_url, "schema": schema}
        self.settings = {"store.postgres": settings, "store.postgresql": settings}
