"""`instrument_all` with AgentOps' instrumentations, and the tracer with its own switched off."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.resources.chat.completions import Completions

from lightning_core.instrumentation import instrument_all, uninstrument_all
from lightning_core.tracer import DummyTracer

PLAIN = Completions.create


@pytest.fixture(autouse=True)
def agentops_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.otel")
    yield
    uninstrument_all()
    assert Completions.create is PLAIN


def ask(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])


def test_calls_are_recorded_in_the_trace_of_a_tracer_that_instruments_nothing(server):
    report = instrument_all()
    assert report.on["openai"] == "tracer 'agentops'"
    assert "there is no module 'google.adk'" in report.off["google.adk"]
    with DummyTracer().trace_context() as trace:
        ask(server.url)
    assert [span.name for span in trace.spans] == ["openai.chat.completion"]
    uninstrument_all()
    assert Completions.create is PLAIN


def test_a_tracer_that_leaves_instrumentation_to_the_program_records_what_the_program_instruments(
    make_tracer, server
):
    tracer = make_tracer(instrument_managed=False)
    assert (tracer.agentops_managed, tracer.instrument_managed, tracer.daemon) == (True, False, True)
    tracer.init_worker(0)
    with tracer.trace_context("before") as trace:
        ask(server.url)
    assert [span.name for span in trace.spans] == ["before"]
    instrument_all()
    with tracer.trace_context("after") as trace:
        ask(server.url)
    assert [span.name for span in trace.spans] == ["openai.chat.completion", "after"]
    tracer.teardown_worker(0)
