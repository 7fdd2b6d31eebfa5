"""`instrument_all` with this package's instrumentations: calls in the trace of any tracer, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from lightning_core.instrumentation import instrument_all, uninstrument_all
from lightning_core.tracer import DummyTracer

OWNER = "tracer 'otel'"
PLAIN = (openai.OpenAI.request, openai.AsyncOpenAI.request)


def is_plain() -> bool:
    # By identity: a wrapper equals what it wraps.
    return PLAIN[0] is openai.OpenAI.request and PLAIN[1] is openai.AsyncOpenAI.request


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    uninstrument_all()
    assert is_plain()


def ask(endpoint: str) -> None:
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])


def test_calls_are_recorded_in_the_trace_of_a_tracer_that_instruments_nothing(endpoint):
    report = instrument_all()
    assert report.on["openai"] == OWNER
    tracer = DummyTracer()
    with tracer.trace_context() as trace:
        ask(endpoint)
    assert [span.name for span in trace.spans] == ["ChatCompletion"]
    assert trace.spans[0].attributes["llm.output_messages.0.message.content"] == "hello"
    uninstrument_all()
    assert is_plain()
    with tracer.trace_context() as trace:
        ask(endpoint)
    assert trace.spans == []


def test_beside_the_tracer_a_call_is_recorded_once_and_each_ends_for_itself(make_tracer, endpoint):
    tracer = make_tracer(instrument=["openai"])
    tracer.init_worker(0)
    assert instrument_all().on["openai"] == OWNER
    with tracer.trace_context("rollout") as trace:
        ask(endpoint)
    assert [span.name for span in trace.spans] == ["ChatCompletion", "rollout"]
    uninstrument_all()
    assert not is_plain()
    tracer.teardown_worker(0)
    assert is_plain()


def test_threads_may_switch_at_once():
    together = threading.Barrier(4, timeout=60)

    def switch(number: int) -> None:
        for _ in range(5):
            together.wait()
            assert instrument_all().on["openai"] == OWNER
            together.wait()
            uninstrument_all()
            together.wait()
            assert is_plain()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(switch, range(4)))


def test_what_is_not_installed_is_said_with_the_way_to_get_it(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from lightning_core.tracer import instrumentations

    def find(name: str) -> None:
        if name == "anthropic":
            raise PackageNotFoundError(name)

    monkeypatch.setattr(instrumentations, "distribution", find)
    # Another package may be able to instrument it.
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.agentops")
    off = instrument_all().off["anthropic"]
    assert off == "anthropic is not installed. To get it: pip install 'lightning-tracer-otel[anthropic]'"
