import subprocess
import sys

import pytest
from lightning_tracer_audit.tracer import AuditTracer

from lightning_core.testing import PluginPackageConformance, TracerConformance


class TestAudit(TracerConformance):
    @pytest.fixture
    def tracer(self):
        return AuditTracer({"subprocess.Popen": 2})


class TestPackage(PluginPackageConformance):
    distribution = "lightning-tracer-audit"


def test_a_process_that_is_started_becomes_a_span():
    tracer = AuditTracer({"subprocess.Popen": 2})
    with tracer.trace_context("agent"):
        subprocess.run([sys.executable, "-c", "0"], check=True)
    subprocess.run([sys.executable, "-c", "0"], check=True)
    started, root = tracer.get_last_trace()
    assert (started.name, root.name) == ("subprocess.Popen", "agent")
    assert started.attributes["audit.arguments"] == (sys.executable, str([sys.executable, "-c", "0"]))
