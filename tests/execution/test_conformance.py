"""The core's strategy passes the suite that plugins inherit."""

from __future__ import annotations

import pytest

from lightning_core.execution import SharedMemoryExecutionStrategy
from lightning_core.testing import StrategyConformance
from lightning_core.testing.strategy import MakeStrategy


class TestSharedMemory(StrategyConformance):
    @pytest.fixture
    def make_strategy(self) -> MakeStrategy:
        return lambda n_runners: SharedMemoryExecutionStrategy(n_runners, graceful_seconds=0.5)
