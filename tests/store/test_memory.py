"""The in-memory store passes the conformance suite of stores; what it journals, it restores."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from lightning_core.store.memory import InMemoryLightningStore, Record
from lightning_core.testing.store import Clock, MakeStore, StoreConformance
from lightning_core.types import Deletion, RolloutConfig, RolloutV2


class TestInMemoryLightningStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda clock: InMemoryLightningStore(clock=clock)


class JournalingStore(InMemoryLightningStore):
    """Keeps every record as it was when it was journaled."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.journaled: list[bytes] = []

    def journal(self, record: Record) -> None:
        self.journaled.append(pickle.dumps(record))

    def again(self, clock: Clock) -> JournalingStore:
        """Restore another store from the journal."""
        store = JournalingStore(clock)
        store.restore(self.records())
        return store

    def records(self) -> Iterator[Record]:
        return map(pickle.loads, self.journaled)


async def test_a_restored_store_has_what_was_journaled_and_not_what_was_deleted():
    now = 1_000.0
    store = JournalingStore(lambda: now)
    for number in range(3):
        await store.enqueue_rollout(number, resources_id=str(number), idempotency_key=str(number))
        await store.update_resources(str(number), {})
    first, _ = await store.dequeue_rollouts(2, "w", request_id="r")
    await store.update_rollout(first.rollout_id, status="failed")
    await store.save_run_state("run", {"step": [1]})
    await store.save_run_state("run", {"step": [1, 2]})
    now = 2_000.0
    await store.vacuum(before=now - 1_000)
    await store.vacuum(before=now)
    [deletion] = [record for record in store.records() if isinstance(record, Deletion) and record.rollout_ids]
    assert deletion.rollout_ids == [first.rollout_id]
    restored = store.again(lambda: now)
    assert await restored.query_rollouts() == await store.query_rollouts()
    assert await restored.statistics() == await store.statistics()
    assert await restored.load_run_state("run") == {"step": [1, 2]}
    assert await restored.get_resources_by_id("0") is None
    assert (await restored.enqueue_rollout("new", idempotency_key="0")).input == "new"
    assert (await restored.enqueue_rollout("new", idempotency_key="2")).input == 2


async def test_a_vacuum_that_deletes_nothing_journals_nothing():
    store = JournalingStore(lambda: 1_000.0)
    await store.enqueue_rollout(1, config=RolloutConfig())
    await store.vacuum(before=0)
    assert [type(record) for record in store.records()] == [RolloutV2]
