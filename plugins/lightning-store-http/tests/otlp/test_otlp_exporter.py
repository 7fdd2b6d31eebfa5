"""The real exporter of OpenTelemetry for Python reports to a store over a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning_store_http.otlp import routes
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from starlette.applications import Starlette

from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import Span

Serve = Callable[[Any], Any]


def record(exporter: OTLPSpanExporter, resource: dict[str, str]) -> list[ReadableSpan]:
    """Record a few spans and export them, and return them in the order in which they ended."""
    ended: list[ReadableSpan] = []

    class Processor(BatchSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span)
            super().on_end(span)

    provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(Processor(exporter))
    agent, client = provider.get_tracer("agent", "1.0"), provider.get_tracer("client")
    with agent.start_as_current_span("root", attributes={"numbers": [1, 2], "text": "é"}) as root:
        link = trace.Link(root.get_span_context(), {"why": "test"})
        with client.start_as_current_span("call", kind=trace.SpanKind.CLIENT, links=[link]) as call:
            call.add_event("token", {"index": 1})
            call.set_status(trace.Status(trace.StatusCode.ERROR, "it broke"))
        with agent.start_as_current_span("reward"):
            pass
    provider.shutdown()
    return ended


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
async def test_the_exporter_reports_what_the_tracer_would_have(
    compression: Compression, store: InMemoryLightningStore, rollout: tuple[str, str], serve: Serve
) -> None:
    with serve(Starlette(routes=routes(store))) as url:
        exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", compression=compression)
        ended = record(exporter, {"service.name": "agent", "lightning.rollout_id": rollout[0]})
    stored = await store.query_spans(*rollout)
    assert [span.name for span in stored] == ["call", "reward", "root"]
    for number, (span, sdk_span) in enumerate(zip(stored, ended, strict=True), start=1):
        expected = Span.from_opentelemetry(sdk_span, *rollout, number)
        extra = dict(span.__pydantic_extra__ or {})
        extra.pop("otlp", None)
        # OTLP has no place for the version None of a scope but the empty one.
        extra["instrumentation_scope"]["version"] = extra["instrumentation_scope"]["version"] or ""
        native = dict(expected.__pydantic_extra__ or {})
        native["instrumentation_scope"]["version"] = native["instrumentation_scope"]["version"] or ""
        assert span.__dict__ == expected.__dict__
        assert extra == native


async def test_the_exporter_takes_its_settings_from_the_environment(
    store: InMemoryLightningStore,
    rollout: tuple[str, str],
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(Starlette(routes=routes(store))) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{url}/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-lightning-rollout-id={rollout[0]}")
        record(OTLPSpanExporter(), {})
    assert [span.name for span in await store.query_spans(*rollout)] == ["call", "reward", "root"]


def test_spans_of_an_unknown_rollout_are_no_failure_of_the_exporter(serve: Serve) -> None:
    # Another answer would have it send them again and again.
    results: list[SpanExportResult] = []

    class Exporter(OTLPSpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            results.append(super().export(spans))
            return results[-1]

    with serve(Starlette(routes=routes(InMemoryLightningStore()))) as url:
        record(Exporter(endpoint=f"{url}/v1/traces"), {"lightning.rollout_id": "ro-unknown"})
    assert results == [SpanExportResult.SUCCESS]
