"""The conformance suite of stores: inherit ``StoreConformance`` and provide one fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import pytest

from lightning_core.store.base import LightningStore

_MODULES = (
    "clocks",
    "encoded",
    "history",
    "lifecycle",
    "queue",
    "quorum",
    "reading",
    "reasons",
    "repeats",
    "spans",
    "vacuum",
    "waiting",
)
for _module in _MODULES:
    pytest.register_assert_rewrite(f"lightning_core.testing._store_{_module}")

from ._store_clocks import ClockTests  # noqa: E402 - after the registration
from ._store_encoded import EncodedSpanTests  # noqa: E402
from ._store_history import MachineTests  # noqa: E402
from ._store_lifecycle import LifecycleTests  # noqa: E402
from ._store_queue import QueueTests  # noqa: E402
from ._store_quorum import QuorumTests  # noqa: E402
from ._store_reading import ReadingTests  # noqa: E402
from ._store_reasons import ReasonTests  # noqa: E402
from ._store_repeats import RepeatTests  # noqa: E402
from ._store_setup import Clock, FakeClock  # noqa: E402
from ._store_spans import SpanTests  # noqa: E402
from ._store_vacuum import VacuumTests  # noqa: E402
from ._store_waiting import WaitingTests  # noqa: E402

__all__ = ["Clock", "FakeClock", "MakeStore", "Reopen", "StoreConformance"]

MakeStore: TypeAlias = Callable[[Clock], LightningStore]
"""Makes an empty store that tells the time by the given clock. Called outside an event loop as well."""

Reopen: TypeAlias = Callable[[LightningStore, Clock], LightningStore]
"""Opens the data of a closed store again."""


class StoreConformance(
    LifecycleTests,
    ReasonTests,
    ClockTests,
    QueueTests,
    RepeatTests,
    SpanTests,
    EncodedSpanTests,
    ReadingTests,
    WaitingTests,
    QuorumTests,
    VacuumTests,
    MachineTests,
):
    """Everything that the store contract promises, as tests.

    Inherit it in a test module, name the subclass ``Test…`` and override ``make_store``::

        class TestMyStore(StoreConformance):
            @pytest.fixture
            def make_store(self) -> MakeStore:
                return lambda clock: MyStore(clock=clock)

    The tests are asynchronous and need ``pytest-asyncio`` in its ``auto`` mode, and ``hypothesis``. What a store does
    not claim in its ``capabilities`` is not asked of it.

    Attributes:
        machine_examples: How many random histories to try where Hypothesis tries 100 examples; a profile with more or
            fewer examples means more or fewer histories as well.
        machine_steps: The greatest length of each.
    """

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Override this: return a function that makes an empty store, given a clock."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_store")

    @pytest.fixture
    def reopen(self) -> Reopen | None:
        """Override this for a durable store: return a function that opens a closed store's data again."""
        return None

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The time of ``store``, which passes only when a test says so."""
        return FakeClock()

    @pytest.fixture
    async def store(self, make_store: MakeStore, clock: FakeClock) -> AsyncIterator[LightningStore]:
        """An empty store under a fake clock."""
        store = make_store(clock)
        yield store
        await store.close()
