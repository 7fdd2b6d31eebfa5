"""The user's own tracer provider: listened to while a tracer works, and otherwise left alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import Any

import pytest
from lightning_tracer_otel import OtelTracer
from opentelemetry import trace as trace_api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import lightning_core
from lightning_core import LLM, Trainer
from lightning_core.bridge import run_sync
from lightning_core.emitter import emit_message
from lightning_core.store.memory import InMemoryLightningStore


def make_provider(**kwargs) -> tuple[TracerProvider, InMemorySpanExporter]:
    provider, exporter = TracerProvider(**kwargs), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def processors(provider: TracerProvider):
    return provider._active_span_processor._span_processors


def make_tracer(**settings) -> OtelTracer:
    return OtelTracer(instrument=[], propagate_threads=False, **settings)


def names(spans) -> list[str]:
    return [span.name for span in spans]


@pytest.mark.parametrize("multi", [None, ConcurrentMultiSpanProcessor], ids=["one by one", "in threads"])
def test_a_users_span_is_recorded_once_and_still_exported(set_global, multi):
    provider, exporter = make_provider(active_span_processor=multi() if multi else None)
    set_global(provider)
    first, second = make_tracer(), make_tracer()
    for tracer in (first, second):
        tracer.init_worker(0)
    mine = trace_api.get_tracer("mine")
    mine.start_span("before").end()
    with first.trace_context("rollout") as trace, mine.start_as_current_span("outer"):
        mine.start_span("inner").end()
    mine.start_span("after").end()
    assert names(trace.spans) == ["inner", "outer", "rollout"]
    assert names(exporter.get_finished_spans()) == ["before", "inner", "outer", "after"]
    for tracer in (first, second):
        tracer.teardown_worker(0)
    provider.shutdown()


async def test_users_spans_of_concurrent_rollouts_land_in_their_own(set_global):
    """Trap 11."""
    provider, exporter = make_provider()
    set_global(provider)
    tracer, store, count = make_tracer(), InMemoryLightningStore(), 50
    tracer.init_worker(0)
    rollouts = [await store.start_rollout(n) for n in range(count)]
    together = asyncio.Barrier(count)

    async def run(n, rollout):
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(f"rollout {n}", store=store, **ids):
            await together.wait()
            with trace_api.get_tracer("mine").start_as_current_span(f"call {n}"):
                await together.wait()
                emit_message("hello")

    await asyncio.gather(*(run(n, rollout) for n, rollout in enumerate(rollouts)))
    tracer.teardown_worker(0)
    for n, rollout in enumerate(rollouts):
        spans = await store.query_spans(rollout.rollout_id)
        assert names(spans) == ["lightning.message", f"call {n}", f"rollout {n}"]
        assert len({span.trace_id for span in spans}) == 1
    assert len(exporter.get_finished_spans()) == count
    await store.close()


def test_the_last_worker_takes_the_router_away(set_global):
    """Trap 16."""
    provider, exporter = make_provider()
    set_global(provider)
    before = processors(provider)
    first, second = make_tracer(), make_tracer()
    for _ in range(2):
        first.init_worker(0)
        first.init_worker(1)
        second.init_worker(0)
        assert len(processors(provider)) == len(before) + 1
        first.teardown_worker(1)
        second.teardown_worker(0)
        assert len(processors(provider)) == len(before) + 1
        first.teardown_worker(0)
        first.teardown_worker(0)
        assert processors(provider) == before
    trace_api.get_tracer("mine").start_span("still exported").end()
    assert names(exporter.get_finished_spans()) == ["still exported"]


def test_a_runner_that_ends_first_takes_nothing_from_the_others(set_global):
    """Each runner sets the tracer that they share up, and tears it down."""
    provider, _ = make_provider()
    set_global(provider)
    before = processors(provider)
    shared = make_tracer()
    for number in range(2):
        shared.init()
        shared.init_worker(number)
    shared.teardown_worker(0)
    shared.teardown()
    assert len(processors(provider)) == len(before) + 1
    shared.teardown_worker(1)
    shared.teardown()
    assert processors(provider) == before


def test_the_processors_change_only_under_the_lock_of_the_sdk(set_global):
    class Watched(SynchronousMultiSpanProcessor):
        """The SDK adds under its lock too: what is added while the router goes must not be lost."""

        def __setattr__(self, name, value):
            if name == "_span_processors" and hasattr(self, "_lock"):
                changes.append(self._lock.locked())
            super().__setattr__(name, value)

    changes = []
    provider, _ = make_provider(active_span_processor=Watched(), shutdown_on_exit=False)
    set_global(provider)
    tracer = make_tracer()
    tracer.init_worker(0)
    tracer.teardown_worker(0)
    assert changes == [True, True, True]  # the exporter, the router, and its removal


def test_a_provider_that_is_set_after_the_tracer_is_found(set_global):
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("first"):
        pass
    provider, _ = make_provider()
    set_global(provider)
    before = processors(provider)
    with tracer.trace_context("second") as trace:
        trace_api.get_tracer("mine").start_span("call").end()
    assert names(trace.spans) == ["call", "second"]
    tracer.teardown_worker(0)
    assert processors(provider) == before


def test_a_provider_is_not_kept_alive(set_global, monkeypatch):
    import weakref

    provider, _ = make_provider(shutdown_on_exit=False)
    set_global(provider)
    tracer = make_tracer()
    tracer.init_worker(0)
    tracer.teardown_worker(0)
    gone = weakref.ref(provider)
    del provider
    trace_api._TRACER_PROVIDER = None
    gc.collect()
    assert gone() is None


def test_a_provider_that_keeps_its_processors_elsewhere_is_routed_once(set_global):
    class Elsewhere:
        def __init__(self):
            self.kept = []

        def add_span_processor(self, processor):
            self.kept.append(processor)

        def on_start(self, span, parent_context=None):
            for each in self.kept:
                each.on_start(span, parent_context)

        def _on_ending(self, span):
            pass

        def on_end(self, span):
            for each in self.kept:
                each.on_end(span)

    multi = Elsewhere()
    set_global(TracerProvider(active_span_processor=multi, shutdown_on_exit=False))
    for _ in range(3):
        tracer = make_tracer()
        tracer.init_worker(0)
        with tracer.trace_context("rollout") as trace:
            trace_api.get_tracer("mine").start_span("call").end()
        assert names(trace.spans) == ["call", "rollout"]
        tracer.teardown_worker(0)
    assert len(multi.kept) == 1


def test_without_a_global_provider_none_is_set(set_global):
    """Trap 16."""
    before = trace_api.get_tracer_provider()
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context() as trace:
        trace_api.get_tracer("mine").start_span("unseen").end()
    assert names(trace.spans) == ["trace"]
    tracer.teardown_worker(0)
    assert trace_api.get_tracer_provider() is before


def test_the_global_provider_can_be_claimed_where_there_is_none(set_global):
    early = trace_api.get_tracer("made at import")
    for _ in range(2):
        tracer = make_tracer(global_provider=True)
        tracer.init_worker(0)
        with tracer.trace_context() as trace:
            early.start_span("seen").end()
        assert names(trace.spans) == ["seen", "trace"]
        tracer.teardown_worker(0)


def test_the_global_provider_of_the_user_is_never_claimed(set_global):
    provider, exporter = make_provider()
    set_global(provider)
    tracer = make_tracer(global_provider=True)
    tracer.init_worker(0)
    with tracer.trace_context() as trace:
        trace_api.get_tracer("mine").start_span("call").end()
    assert trace_api.get_tracer_provider() is provider
    assert names(trace.spans) == ["call", "trace"]
    assert names(exporter.get_finished_spans()) == ["call"]
    tracer.teardown_worker(0)


# Through a whole run


def work(number: int) -> None:
    """What a user's own instrumentation may write."""
    tracer = trace_api.get_tracer("users", "1.2", attributes={"scope": "s"})
    with tracer.start_as_current_span(
        f"outer {number}", kind=trace_api.SpanKind.CLIENT, attributes={"number": number}
    ) as outer:
        outer.add_event("began", {"a": 1})
        with tracer.start_as_current_span("inner") as inner:
            inner.set_attribute("deep", [1, 2])
        try:
            with tracer.start_as_current_span("failing"):
                raise ValueError("no")
        except ValueError:
            pass
        outer.set_status(trace_api.StatusCode.ERROR, "not good")


@lightning_core.rollout
def working(task: int, llm: LLM) -> float:
    work(task)
    emit_message("ours")
    return 1.0


def contents(spans) -> list[Any]:
    """All that a user has put into spans; an exception's event holds the lines of the code around it too."""
    by_id = {span.context.span_id: span.name for span in spans}
    rows = [
        (
            span.name,
            dict(span.attributes),
            [(event.name, event.attributes.get("exception.message")) for event in span.events],
            span.kind.name,
            (span.status.status_code.name, span.status.description),
            by_id.get(span.parent.span_id) if span.parent is not None else None,
            (span.instrumentation_scope.name, span.instrumentation_scope.version),
            dict(span.instrumentation_scope.attributes),
            dict(span.resource.attributes),
        )
        for span in spans
    ]
    return sorted(rows, key=repr)


@pytest.mark.parametrize("when", ["before the trainer", "after the trainer", "by an agent"])
def test_through_a_whole_run_the_users_exporter_gets_what_it_gets_without_one(set_global, when):
    """Trap 16: the same spans, each once, before, during and after; no processor stays."""
    provider, exporter = make_provider(resource=Resource({"service.name": "users"}))
    before = processors(provider)
    numbers = range(20)

    @lightning_core.rollout
    def late(task: int, llm: LLM) -> float:
        if trace_api.get_tracer_provider() is not provider:
            set_global(provider)
        return working(task, llm)

    if when == "before the trainer":
        set_global(provider)
    trainer = Trainer(
        tracer={"type": "otel", "instrument": []},
        algorithm="baseline",
        n_runners=1 if when == "by an agent" else 4,
        initial_resources={"llm": LLM(endpoint="http://localhost", model="none")},
    )
    if when == "after the trainer":
        set_global(provider)
    if when != "by an agent":
        work(-1)
        [alone, *_] = [span for span in exporter.get_finished_spans() if span.name == "outer -1"]
        assert alone.parent is None
    result = trainer.fit(late if when == "by an agent" else working, list(numbers))
    assert result.rollouts == {"succeeded": len(numbers)}
    assert trace_api.get_tracer_provider() is provider
    assert processors(provider) == before
    work(100)
    got = exporter.get_finished_spans()
    assert [span.parent for span in got if span.name == "outer 100"] == [None]

    # The same work without a trainer.
    exporter.clear()
    for number in (*(() if when == "by an agent" else (-1,)), *numbers, 100):
        work(number)
    assert contents(got) == contents(exporter.get_finished_spans())

    async def stored() -> list[list[str]]:
        rollouts = await trainer.store.query_rollouts()
        return [names(await trainer.store.query_spans(each.rollout_id)) for each in rollouts]

    users = ["inner", "failing", "outer"]
    for spans in run_sync(stored())[1 if when == "by an agent" else 0 :]:
        assert [name.split(" ")[0] for name in spans] == [
            *users,
            "lightning.message",
            "rollout",
            "lightning.reward",
        ]
    provider.shutdown()


def test_through_a_whole_run_no_global_provider_appears(set_global):
    """Trap 16: one that is set afterwards is the user's, and gets all."""
    trainer = Trainer(
        tracer={"type": "otel", "instrument": []},
        algorithm="baseline",
        initial_resources={"llm": LLM(endpoint="http://localhost", model="none")},
    )
    assert trainer.fit(working, [1, 2]).rollouts == {"succeeded": 2}
    assert isinstance(trace_api.get_tracer_provider(), trace_api.ProxyTracerProvider)
    provider, exporter = make_provider()
    set_global(provider)
    work(1)
    assert sorted(names(exporter.get_finished_spans())) == ["failing", "inner", "outer 1"]
    provider.shutdown()


SILENT = """
import asyncio, socket, sys
attempts = []
def refuse(self, address):
    attempts.append(address)
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = lambda *args, **kwargs: attempts.append(args) or []

from lightning_core.emitter import emit_reward
from lightning_core.store.memory import InMemoryLightningStore
from lightning_tracer_otel import OtelTracer
from opentelemetry import trace

async def main():
    store = InMemoryLightningStore()
    tracer = OtelTracer(global_provider=True)
    tracer.init()
    tracer.init_worker(0)
    for n in range(3):
        rollout = await store.start_rollout(n)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context("rollout", store=store, **ids):
            trace.get_tracer("mine").start_span("call").end()
            emit_reward(n)
        assert [span.name for span in await store.query_spans(rollout.rollout_id)] == [
            "call", "lightning.reward", "rollout"
        ]
    tracer.teardown_worker(0)
    tracer.teardown()
    trace.get_tracer_provider().force_flush()
    trace.get_tracer_provider().shutdown()
asyncio.run(main())
print(attempts)
print([name for name in sys.modules if "exporter.otlp" in name])
"""


def test_nothing_is_exported_whatever_the_environment_says():
    """Trap 34: no connection is tried, and the spans are stored all the same."""
    environment = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_SDK_DISABLED": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", SILENT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
