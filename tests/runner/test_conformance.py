"""``AgentRunnerV2`` keeps the contract of runners."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_core import AgentRunnerV2
from lightning_core.testing import RunnerConformance
from lightning_core.testing.runner import MakeRunner


class TestAgentRunnerV2(RunnerConformance):
    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        def make(tracer: Any, **settings: Any) -> AgentRunnerV2[Any]:
            return AgentRunnerV2(tracer, poll_interval=3600, **settings)

        return make
