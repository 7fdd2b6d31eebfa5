"""The conformance suite of runners: inherit ``RunnerConformance`` and provide one fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lightning_core.store.memory import InMemoryLightningStore

for _module in ("setup", "outcomes", "lifecycle", "work"):
    pytest.register_assert_rewrite(f"lightning_core.testing._runner_{_module}")

from ._runner_lifecycle import LifecycleTests  # noqa: E402 - after the registration
from ._runner_outcomes import OutcomeTests  # noqa: E402
from ._runner_setup import RESOURCES, MakeRunner, Session  # noqa: E402
from ._runner_work import WorkTests  # noqa: E402

__all__ = ["MakeRunner", "RunnerConformance"]


class RunnerConformance(OutcomeTests, LifecycleTests, WorkTests):
    """Everything that a runner promises, as tests against a real store.

    Inherit it in a test module, name the subclass ``Test…`` and override ``make_runner``::

        class TestMyRunner(RunnerConformance):
            @pytest.fixture
            def make_runner(self) -> MakeRunner:
                return lambda tracer, **settings: MyRunner(tracer, **settings)

    The settings are ``max_rollouts``, ``concurrency`` and ``heartbeat_interval``; see :class:`MakeRunner`. The tests
    are asynchronous and need ``pytest-asyncio`` in its ``auto`` mode.

    Attributes:
        concurrent: Whether the runner runs several rollouts at the same time, and so heeds ``concurrency``.
    """

    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        """Override this: return a function that makes a runner, given a tracer and settings."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_runner")

    @pytest.fixture
    async def session(self, make_runner: MakeRunner) -> AsyncIterator[Session]:
        """A store with resources, and the runners to make."""
        store = InMemoryLightningStore()
        await store.add_resources(RESOURCES)
        yield Session(store, make_runner)
        await store.close()
