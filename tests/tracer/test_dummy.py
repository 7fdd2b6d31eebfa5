"""The dummy tracer keeps the contract of tracers."""

import pytest

from lightning_core.testing import TracerConformance
from lightning_core.tracer import DummyTracer


class TestDummyTracer(TracerConformance):
    @pytest.fixture
    def tracer(self):
        return DummyTracer()
