"""The otel tracer keeps the contract of tracers, and its package that of plugins."""

from __future__ import annotations

import pytest
from lightning_tracer_otel import OtelTracer

from lightning_core import resolve
from lightning_core.emitter import emit_message
from lightning_core.errors import PluginSettingsError
from lightning_core.testing import PluginPackageConformance, TracerConformance
from lightning_core.tracer import OtelTracer as FromCore


class TestOtelTracer(TracerConformance):
    @pytest.fixture
    def tracer(self):
        return OtelTracer()


class TestOtelTracerAlone(TracerConformance):
    """Without any help from instrumentations."""

    @pytest.fixture
    def tracer(self):
        return OtelTracer(instrument=[], propagate_threads=False)


class TestPackage(PluginPackageConformance):
    distribution = "lightning-tracer-otel"


def test_it_is_selected_by_name_with_settings():
    tracer = resolve("tracer", {"type": "otel", "instrument": [], "service_name": "mine"})
    assert type(tracer) is OtelTracer is FromCore
    with tracer.trace_context("work") as trace:
        emit_message("hello")
    message, root = trace.spans
    assert root.name == "work"
    assert message.parent.span_id == root.context.span_id
    assert root.resource.attributes["service.name"] == "mine"
    tracer.teardown()


def test_a_misspelled_setting_is_named():
    with pytest.raises(PluginSettingsError, match=r"tracer\.instruments"):
        resolve("tracer", {"type": "otel", "instruments": []})


def test_the_service_is_that_of_the_environment_by_default(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    tracer = OtelTracer(instrument=[])
    with tracer.trace_context():
        pass
    [root] = tracer.get_last_trace()
    assert root.name == "trace"
    assert root.resource.attributes["service.name"] == "from-environment"
    tracer.teardown()
