"""Runners of a run that is executed elsewhere see how it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lightning_store_http import LightningStoreServer
from lightning_store_http.following import FollowedRun

from lightning_core import InMemoryLightningStore
from lightning_core.bridge import run_sync
from lightning_core.errors import StoreUnavailableError
from lightning_core.trainer.scope import run_store
from lightning_core.types import Run

PATIENCE = 60.0


@pytest.fixture
def store() -> InMemoryLightningStore:
    """It has the run of the tests, and a later one that was left behind."""
    store = InMemoryLightningStore()
    run_sync(store.save_run(Run(run_id="ours")))
    run_sync(store.save_run(Run(run_id="left behind")))
    return store


@pytest.fixture
def server(store: InMemoryLightningStore) -> Iterator[LightningStoreServer]:
    with LightningStoreServer(run_store(store, "ours")) as server:
        yield server


@pytest.fixture
def followed(server: LightningStoreServer) -> FollowedRun:
    followed = FollowedRun(server.url, server.token)
    followed.begin(PATIENCE)
    return followed


@pytest.fixture
def beside() -> Iterator[Callable[..., Any]]:
    """Begins a call in another thread."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit


def test_the_end_is_seen_once_it_is_stored(
    store: InMemoryLightningStore,
    server: LightningStoreServer,
    followed: FollowedRun,
    beside: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
):
    looked = threading.Event()
    query = store.query_runs

    async def query_runs(run_id: str | None = None) -> list[Run]:
        found = await query(run_id)
        looked.set()
        return found

    assert followed.run is not None
    assert followed.run.run_id == "ours"
    server.announce_end()
    monkeypatch.setattr(store, "query_runs", query_runs)
    seen = beside(followed.see_end, PATIENCE)
    # Before the end is stored.
    assert looked.wait(PATIENCE)
    run_sync(store.save_run(Run(run_id="ours", status="failed", error="no luck")))
    seen.result(PATIENCE)
    assert (followed.run.status, followed.run.error) == ("failed", "no luck")


def test_a_run_that_goes_on_is_not_waited_for(followed: FollowedRun):
    """Runners that have reached max_rollouts leave before its end."""
    begun = time.monotonic()
    followed.see_end(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert followed.run is not None
    assert followed.run.status == "running"


def test_an_end_that_nobody_stores_is_not_waited_for_without_limit(
    server: LightningStoreServer, followed: FollowedRun
):
    server.announce_end()
    followed.see_end(0.2)
    assert followed.run is not None
    assert followed.run.status == "running"


def test_a_server_that_is_gone_leaves_what_was_seen_last(server: LightningStoreServer, followed: FollowedRun):
    server.stop()
    followed.see_end(PATIENCE)
    followed.leave()
    assert followed.run is not None
    assert followed.run.run_id == "ours"


def test_the_server_stays_until_all_have_left(
    server: LightningStoreServer, followed: FollowedRun, beside: Callable[..., Any]
):
    other = FollowedRun(server.url, server.token)
    other.begin(PATIENCE)
    followed.leave()
    begun = time.monotonic()
    server.see_off(0.2)
    assert time.monotonic() - begun >= 0.2
    gone = beside(server.see_off, 10 * PATIENCE)
    other.leave()
    gone.result(PATIENCE)


def test_nobody_is_waited_for_where_nobody_follows(server: LightningStoreServer):
    begun = time.monotonic()
    server.see_off(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_server_that_never_comes_is_an_error(server: LightningStoreServer):
    server.stop()
    with pytest.raises(StoreUnavailableError, match="could not be reached"):
        FollowedRun(server.url, server.token).begin(0.2)
