"""Instrumentations: LLM calls become spans of the right rollout, and libraries are left as they were."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import openai
import pytest
from lightning_tracer_otel import OtelTracer, instrumentation
from lightning_tracer_otel.instrumentation import INSTRUMENTATIONS
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from packaging.requirements import Requirement

from lightning_core.emitter import emit_message, emit_reward, get_reward_value
from lightning_core.errors import ConfigurationError, TraceError
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer import instrumentations
from lightning_core.types import LLMCall

PLAIN = (openai.OpenAI.request, openai.AsyncOpenAI.request)
PLAIN_THREADS = (threading.Thread.start, ThreadPoolExecutor.submit)


def is_plain() -> bool:
    # By identity: a wrapper equals what it wraps.
    return PLAIN[0] is openai.OpenAI.request and PLAIN[1] is openai.AsyncOpenAI.request


def threads_are_plain() -> bool:
    now = (threading.Thread.start, ThreadPoolExecutor.submit)
    return all(before is after for before, after in zip(PLAIN_THREADS, now, strict=True))


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """After the tracers are torn down, everything is as it was."""
    yield
    assert is_plain()
    assert threads_are_plain()


def ask(endpoint: str, text: str) -> None:
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": text}]
        client.chat.completions.create(model="echo", messages=messages, temperature=0.5)


@pytest.mark.parametrize("instrument", ["auto", ["openai"]])
def test_a_call_of_the_model_becomes_a_span(make_tracer, endpoint, instrument):
    tracer = make_tracer(instrument=instrument)
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        ask(endpoint, "hello")
        emit_reward(1)
    call, _, root = trace.spans
    assert call.parent.span_id == root.context.span_id
    assert call.attributes["llm.input_messages.0.message.content"] == "hello"
    assert call.attributes["llm.output_messages.0.message.content"] == "hello"
    assert call.attributes["llm.token_count.completion"] == 3
    assert json.loads(call.attributes["llm.invocation_parameters"])["temperature"] == 0.5


def test_a_large_image_is_recorded_whole(make_tracer, endpoint, monkeypatch):
    monkeypatch.delenv("OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH", raising=False)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]}]
    tracer = make_tracer()
    tracer.init_worker(0)
    with (
        tracer.trace_context() as trace,
        openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0) as client,
    ):
        client.chat.completions.create(model="echo", messages=messages)
    assert LLMCall.from_span(trace.spans[0]).messages == messages


async def test_calls_of_concurrent_rollouts_land_in_their_own(make_tracer, endpoint):
    """Trap 11."""
    tracer, store, count = make_tracer(), InMemoryLightningStore(), 20
    tracer.init_worker(0)
    rollouts = [await store.start_rollout(n) for n in range(count)]
    together = asyncio.Barrier(count)

    async def run(n, rollout, client):
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(f"rollout {n}", store=store, **ids):
            await together.wait()
            for turn in range(2):
                messages = [{"role": "user", "content": f"{n}.{turn}"}]
                await client.chat.completions.create(model="echo", messages=messages)

    async with openai.AsyncOpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(run(n, rollout, client) for n, rollout in enumerate(rollouts)))
    for n, rollout in enumerate(rollouts):
        *calls, root = await store.query_spans(rollout.rollout_id)
        answers = [call.attributes["llm.output_messages.0.message.content"] for call in calls]
        assert answers == [f"{n}.0", f"{n}.1"]
        assert {call.parent_id for call in calls} == {root.span_id}
    await store.close()


def test_libraries_are_instrumented_once_and_left_as_they_were(make_tracer, endpoint):
    """Trap 33: and again after that."""
    first, second = make_tracer(), make_tracer()
    for _ in range(2):
        first.init_worker(0)
        first.init_worker(1)
        second.init_worker(0)
        with second.trace_context() as trace:
            ask(endpoint, "hello")
        assert len(trace.spans) == 2
        first.teardown_worker(0)
        first.teardown_worker(1)
        assert not is_plain()
        with second.trace_context() as trace:
            ask(endpoint, "hello")
        assert len(trace.spans) == 2
        second.teardown_worker(0)
        assert is_plain()
        assert threads_are_plain()


def test_outside_a_trace_a_call_leaves_nothing(make_tracer, endpoint):
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context() as trace:
        pass
    ask(endpoint, "hello")
    assert [span.name for span in trace.spans] == ["trace"]


def test_what_the_program_has_instrumented_itself_stays_as_it_is(make_tracer, endpoint):
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    try:
        tracer = make_tracer()
        tracer.init_worker(0)
        with tracer.trace_context() as trace:
            ask(endpoint, "hello")
        tracer.teardown_worker(0)
        ask(endpoint, "again")
        assert len(exporter.get_finished_spans()) == 2
        assert [span.name for span in trace.spans] == ["trace"]
    finally:
        OpenAIInstrumentor().uninstrument()
        provider.shutdown()


def test_what_the_program_has_instrumented_itself_is_recorded_through_its_global_provider(
    make_tracer, endpoint, set_global
):
    """Trap 16: the program's exporter gets every span, and the trace those of its own."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_global(provider)
    OpenAIInstrumentor().instrument()
    try:
        tracer = make_tracer()
        tracer.init_worker(0)
        ask(endpoint, "before")
        with tracer.trace_context() as trace:
            ask(endpoint, "within")
        tracer.teardown_worker(0)
        ask(endpoint, "after")
        assert [span.name for span in exporter.get_finished_spans()] == ["ChatCompletion"] * 3
        assert [span.name for span in trace.spans] == ["ChatCompletion", "trace"]
    finally:
        OpenAIInstrumentor().uninstrument()


LATE = """
import sys
from lightning_tracer_otel import OtelTracer
tracer = OtelTracer()
tracer.init_worker(0)
with tracer.trace_context() as trace:
    early = [name for name in ("openai", "langchain_core", "openinference") if name in sys.modules]
    import openai, langchain_core.language_models
    from langchain_core.language_models import FakeListChatModel
    try:
        openai.OpenAI(base_url="http://127.0.0.1:9", api_key="none", max_retries=0).models.list
        openai.OpenAI(base_url="http://127.0.0.1:9", api_key="none", max_retries=0).chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hello"}]
        )
    except openai.APIConnectionError:
        pass
    FakeListChatModel(responses=["hi"]).invoke("hello")
tracer.teardown_worker(0)
print(early, [span.name for span in trace.spans])
"""


def test_a_library_that_is_imported_late_costs_nothing_before_and_is_instrumented_then():
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] ['ChatCompletion', 'FakeListChatModel', 'trace']"


BUILT = """
from lightning_tracer_otel import OtelTracer
from lightning_core.tracer import deferred

deferred._BUILDS_ALONE = False
tracer = OtelTracer(instrument=["openai"])
tracer.init_worker(0)
import openai.types.chat, openai.types.responses
tracer.teardown_worker(0)
models = [openai.types.chat.ChatCompletion, openai.types.chat.ChatCompletionChunk, openai.types.responses.Response]
print([model.__pydantic_complete__ for model in models], openai.types.chat.ChatCompletionMessage.__pydantic_complete__)
"""


def test_answers_are_built_before_threads_write_them_down_where_pydantic_does_not_have_them_wait():
    """Trap 11: else the first answers of threads at once are recorded as ``{}``, with pydantic before 2.14."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[True, True, True] False"


def test_a_chain_of_langchain_becomes_spans(make_tracer):
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser

    tracer = make_tracer(instrument=["langchain"])
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        assert (FakeListChatModel(responses=["hi"]) | StrOutputParser()).invoke("hello") == "hi"
    assert {span.name for span in trace.spans} == {
        "FakeListChatModel",
        "StrOutputParser",
        "RunnableSequence",
        "rollout",
    }
    assert len({span.context.trace_id for span in trace.spans}) == 1
    model = next(span for span in trace.spans if span.name == "FakeListChatModel")
    assert model.attributes["llm.output_messages.0.message.content"] == "hi"


async def test_worker_threads_may_share_a_tracer_or_have_their_own(make_tracer):
    shared, count = make_tracer(), 8
    store = InMemoryLightningStore()
    rollouts = [await store.start_rollout(n) for n in range(count)]
    together = threading.Barrier(count, timeout=20)

    def work(n, rollout):
        tracer = shared if n % 2 else make_tracer()
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}

        async def run():
            async with tracer.trace_context(store=store, **ids):
                together.wait()
                emit_reward(n)

        for _ in range(3):
            tracer.init_worker(n)
            together.wait()
            asyncio.run(run())
            together.wait()
            tracer.teardown_worker(n)

    with ThreadPoolExecutor(count) as pool:
        await asyncio.gather(
            *(asyncio.wrap_future(pool.submit(work, n, rollout)) for n, rollout in enumerate(rollouts))
        )
    assert is_plain()
    for n, rollout in enumerate(rollouts):
        spans = await store.query_spans(rollout.rollout_id)
        assert [get_reward_value(span) for span in spans if span.name != "trace"] == [n] * 3
    await store.close()


# What cannot be instrumented


SDKS = {
    "openai": "openai",
    "langchain": "langchain-core",
    "anthropic": "anthropic",
    "openai-agents": "openai-agents",
    "litellm": "litellm",
}


@pytest.mark.parametrize(
    "gone", [*SDKS.values(), *(f"openinference-instrumentation-{name}" for name in SDKS)]
)
def test_what_is_not_installed_is_said_with_the_way_to_get_it_and_left_out_by_auto(monkeypatch, gone):
    name = next(each for each, sdk in SDKS.items() if gone in (sdk, f"openinference-instrumentation-{each}"))

    def find(asked):
        if asked == gone:
            raise PackageNotFoundError(asked)

    monkeypatch.setattr(instrumentations, "distribution", find)
    with pytest.raises(ConfigurationError) as error:
        OtelTracer(instrument=[name])
    assert str(error.value) == (
        f"tracer 'otel' cannot instrument '{name}', since {gone} is not installed. "
        f"To get it: pip install 'lightning-tracer-otel[{name}]'"
    )
    assert set(SDKS) - set(INSTRUMENTATIONS.find_installed()) == {name}


def test_every_name_is_an_extra_that_brings_sdk_and_instrumentation():
    package = distribution("lightning-tracer-otel")
    required = [Requirement(text) for text in package.requires or ()]
    assert set(INSTRUMENTATIONS.known) == set(SDKS)
    for name, sdk in SDKS.items():
        assert name in package.metadata.get_all("Provides-Extra")
        brought = {
            each.name for each in required if each.marker is None or each.marker.evaluate({"extra": name})
        }
        assert {sdk, f"openinference-instrumentation-{name}"} <= brought


def test_auto_without_any_of_them_records_the_rest(make_tracer, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(instrumentations, "distribution", nothing)
    with make_tracer().trace_context() as trace:
        emit_message("hello")
    assert len(trace.spans) == 2


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"'opnai'.*did you mean 'openai'\? There are: .*langchain"):
        OtelTracer(instrument=["opnai"])


def test_other_instrumentations_are_found_by_the_name_they_announce(make_tracer, monkeypatch):
    switched = []

    class Instrumentor:
        is_instrumented_by_opentelemetry = False

        def instrument(self, tracer_provider):
            switched.append(tracer_provider)
            Instrumentor.is_instrumented_by_opentelemetry = True

        def uninstrument(self):
            switched.append(None)
            Instrumentor.is_instrumented_by_opentelemetry = False

    class Announced:
        name = "other"

        def load(self):
            return Instrumentor

    monkeypatch.setattr(instrumentation, "entry_points", lambda group: [Announced()])
    tracer = make_tracer(instrument=["other"])
    tracer.init_worker(0)
    assert switched == [tracer._provider]
    tracer.teardown_worker(0)
    assert switched == [tracer._provider, None]


def test_an_instrumentation_that_refuses_is_an_error(make_tracer, monkeypatch):
    monkeypatch.setattr(OpenAIInstrumentor, "instrumentation_dependencies", lambda self: ["openai >= 999"])
    tracer = make_tracer(instrument=["openai"])
    with pytest.raises(TraceError, match=r"'openai' refuses the installed version .* openai >= 999"):
        tracer.init_worker(0)
    assert threads_are_plain()


def test_an_instrumentation_that_refuses_is_a_warning_where_nobody_asked_for_it(
    make_tracer, endpoint, monkeypatch, caplog
):
    monkeypatch.setattr(OpenAIInstrumentor, "instrumentation_dependencies", lambda self: ["openai >= 999"])
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context() as trace:
        ask(endpoint, "hello")
    assert [span.name for span in trace.spans] == ["trace"]
    assert "'openai' refuses the installed version" in caplog.text
    assert "Its calls are not traced" in caplog.text
