"""OTLP on a real LightningStoreServer: behind its token, and forwarded whichever way a span comes in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import Span


def export_one(name: str) -> None:
    """Export a span as the environment says."""
    provider = TracerProvider(resource=Resource.create(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    provider.get_tracer("agent").start_span(name).end()
    provider.shutdown()


def set_environment(monkeypatch: pytest.MonkeyPatch, server: LightningStoreServer, rollout_id: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{server.url}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{server.token}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"lightning.rollout_id={rollout_id}")


async def test_an_exporter_with_the_token_reports_to_the_server(
    store: InMemoryLightningStore, rollout: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LightningStoreServer(store) as server:
        set_environment(monkeypatch, server, rollout[0])
        await asyncio.to_thread(export_one, "with")
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_HEADERS")
        await asyncio.to_thread(export_one, "without")
    assert [span.name for span in await store.query_spans(*rollout)] == ["with"]


async def test_the_server_forwards_spans_however_they_come(
    store: InMemoryLightningStore, rollout: tuple[str, str], monkeypatch: pytest.MonkeyPatch, sink: Any
) -> None:
    rollout_id, attempt_id = rollout
    async with LightningStoreServer(store, forward_to=sink.url) as server:
        set_environment(monkeypatch, server, rollout_id)
        await asyncio.to_thread(export_one, "by OTLP")
        client = LightningStoreClient(server.url, token=server.token)
        for name in ("by the client", "by the client"):
            span = Span.from_attributes(
                attributes={}, rollout_id=rollout_id, attempt_id=attempt_id, name=name, span_id="1" * 16
            )
            await client.add_spans([span])
        await client.close()
    sent = {span.name: {item.key: item.value for item in span.attributes} for span in sink.spans}
    assert sorted(span.name for span in sink.spans) == ["by OTLP", "by the client"]
    assert sent["by OTLP"]["lightning.sequence_id"].int_value == 1
    assert sent["by the client"]["lightning.sequence_id"].int_value == 2
