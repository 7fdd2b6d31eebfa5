"""The agentops tracer keeps the contract of tracers, and its package that of plugins."""

from __future__ import annotations

import pytest
from lightning_tracer_agentops import AgentOpsTracer

from lightning_core import resolve
from lightning_core.errors import ConfigurationError, PluginSettingsError
from lightning_core.testing import PluginPackageConformance, TracerConformance
from lightning_core.tracer import AgentOpsTracer as FromCore


class TestAgentOpsTracer(TracerConformance):
    @pytest.fixture
    def tracer(self):
        return AgentOpsTracer()


class TestUnmanaged(TracerConformance):
    """Where the program looks after AgentOps and its instrumentations itself."""

    @pytest.fixture
    def tracer(self):
        return AgentOpsTracer(agentops_managed=False, instrument_managed=False, daemon=False)


class TestPackage(PluginPackageConformance):
    distribution = "lightning-tracer-agentops"


def test_it_is_selected_by_name_with_settings():
    tracer = resolve("tracer", {"type": "agentops", "instrument": [], "service_name": "mine"})
    assert type(tracer) is AgentOpsTracer is FromCore
    with tracer.trace_context("work"):
        pass
    [root] = tracer.get_last_trace()
    assert root.name == "work"
    assert root.resource.attributes["service.name"] == "mine"
    tracer.teardown()


def test_a_misspelled_setting_is_named():
    with pytest.raises(PluginSettingsError, match=r"tracer\.apikey: .*did you mean 'api_key'"):
        resolve("tracer", {"type": "agentops", "apikey": "secret"})


def test_an_unknown_library_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"'opnai': .*did you mean 'openai'\? There are: .*crewai"):
        AgentOpsTracer(instrument=["opnai"])


def test_a_library_that_is_not_installed_is_said():
    with pytest.raises(ConfigurationError, match=r"'google\.adk', since there is no module 'google\.adk'"):
        AgentOpsTracer(instrument=["google.adk"])


def test_a_key_for_a_client_that_is_not_to_be_started_is_refused():
    with pytest.raises(ConfigurationError, match="agentops_managed=False"):
        AgentOpsTracer(agentops_managed=False, api_key="secret")


def test_a_setting_without_effect_is_said():
    assert AgentOpsTracer().idle_settings() == []
    [said] = AgentOpsTracer(daemon=False).idle_settings()
    assert said.startswith("tracer.daemon is false")
