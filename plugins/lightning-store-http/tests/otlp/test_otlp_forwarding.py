"""Stored spans reach another endpoint, and writing to the store never waits for that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from lightning_store_http.otlp import Forwarder, forwarding, routes
from lightning_store_http.otlp.losses import Losses
from lightning_store_http.otlp.sender import shown_url, traces_url
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.applications import Starlette
from starlette.responses import Response

from lightning_core.errors import ConfigurationError
from lightning_core.store.base import LightningStore
from lightning_core.store.encoding import encode_span
from lightning_core.store.memory import InMemoryLightningStore, Record
from lightning_core.types import Event, Span

SOON = {"batch_seconds": 0.01, "first_backoff": 0.01}
Serve = Callable[[Any], Any]


def make_spans(count: int, rollout_id: str = "ro", attempt_id: str = "at", **fields: Any) -> list[Span]:
    return [
        Span.from_attributes(
            attributes={"text": "é", "number": number},
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            name=f"span {number}",
            **fields,
        )
        for number in range(count)
    ]


@contextmanager
def closed_port() -> Iterator[str]:
    """The URL of a port on which nobody listens, and nobody else will."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_spans_are_sent_with_what_the_store_knows_of_them(sink: Any) -> None:
    with Forwarder(sink.url, headers={"authorization": "Bearer t"}, **SOON) as forwarder:
        forwarder.offer([encode_span(span) for span in make_spans(3, sequence_id=4)])
    assert (forwarder.sent, forwarder.dropped, forwarder.waiting) == (3, 0, 0)
    headers, _ = sink.requests[0]
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["content-encoding"] == "gzip"
    assert headers["authorization"] == "Bearer t"
    attributes = {item.key: item.value for item in sink.spans[0].attributes}
    assert attributes["lightning.rollout_id"].string_value == "ro"
    assert attributes["lightning.attempt_id"].string_value == "at"
    assert attributes["lightning.sequence_id"].int_value == 4
    assert attributes["number"].int_value == 0


def test_spans_are_sent_uncompressed_if_asked_to(sink: Any) -> None:
    with Forwarder(sink.url, compression="none", **SOON) as forwarder:
        forwarder.offer(make_spans(1))
    assert "content-encoding" not in sink.requests[0][0]


def test_spans_are_sent_in_batches_while_more_are_offered(sink: Any) -> None:
    with Forwarder(sink.url, batch_spans=10, batch_seconds=60.0) as forwarder:
        forwarder.offer(make_spans(10))
        # A full batch does not wait for the time to pass.
        sink.wait_for(spans=10)
        forwarder.offer(make_spans(25))
        sink.wait_for(spans=30)
    assert len(sink.spans) == 35
    assert [len(message.resource_spans) for _, message in sink.requests] == [1, 1, 1, 1]


def test_a_lone_span_is_sent_when_its_time_has_come(sink: Any) -> None:
    with Forwarder(sink.url, batch_seconds=0.01) as forwarder:
        forwarder.offer(make_spans(1))
        sink.wait_for(spans=1)


def test_spans_offered_before_the_start_are_sent(sink: Any) -> None:
    forwarder = Forwarder(sink.url, **SOON)
    forwarder.offer(make_spans(2))
    forwarder.start()
    sink.wait_for(spans=2)
    forwarder.stop()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_endpoint_is_tried_again(status: int, sink: Any) -> None:
    sink.script = [Response(status_code=status), Response(status_code=status)]
    with Forwarder(sink.url, **SOON) as forwarder:
        forwarder.offer(make_spans(2))
        sink.wait_for(spans=2)
    assert (forwarder.sent, forwarder.dropped) == (2, 0)


def test_the_endpoint_says_when_to_try_again(sink: Any) -> None:
    sink.script = [Response(status_code=503, headers={"retry-after": "1"})]
    with Forwarder(sink.url, **SOON) as forwarder:
        begin = time.monotonic()
        forwarder.offer(make_spans(1))
        sink.wait_for(spans=1)
        assert time.monotonic() - begin >= 1.0


@pytest.mark.parametrize("status", [400, 401, 404, 500, 302])
def test_other_errors_drop_the_batch_and_say_why(
    status: int, sink: Any, caplog: pytest.LogCaptureFixture
) -> None:
    body = Status(message="no such tenant").SerializeToString()
    sink.script = [Response(body, status, media_type="application/x-protobuf")]
    with Forwarder(sink.url, **SOON) as forwarder:
        forwarder.offer(make_spans(2))
        sink.wait_for(refused=1)
        forwarder.offer(make_spans(1))
        sink.wait_for(spans=1)
    assert (forwarder.sent, forwarder.dropped) == (1, 2)
    assert f"2 spans were not forwarded to {sink.url}/v1/traces" in caplog.text
    assert f"the endpoint answered {status} (no such tenant)" in caplog.text


def test_what_the_endpoint_rejects_is_counted(sink: Any, caplog: pytest.LogCaptureFixture) -> None:
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 2
    partial.partial_success.error_message = "too old"
    sink.script = [Response(partial.SerializeToString(), media_type="application/x-protobuf")]
    with Forwarder(sink.url, **SOON) as forwarder:
        forwarder.offer(make_spans(5))
        sink.wait_for(refused=1)
    assert (forwarder.sent, forwarder.dropped) == (3, 2)
    assert "too old" in caplog.text


def test_a_request_that_is_too_large_is_split(sink: Any) -> None:
    sink.most_spans = 3
    spans = make_spans(10)
    with Forwarder(sink.url, batch_spans=10, batch_seconds=60.0) as forwarder:
        forwarder.offer(spans)
        sink.wait_for(spans=10)
    assert [span.name for span in sink.spans] == [span.name for span in spans]
    assert forwarder.dropped == 0


def test_a_span_that_is_too_large_alone_is_dropped(sink: Any) -> None:
    sink.most_spans = 0
    with Forwarder(sink.url, **SOON) as forwarder:
        forwarder.offer(make_spans(2))
        sink.wait_for(refused=3)
    assert (forwarder.sent, forwarder.dropped) == (0, 2)


def test_a_span_that_otlp_cannot_express_is_dropped_alone(sink: Any) -> None:
    with Forwarder(sink.url, **SOON) as forwarder:
        forwarder.offer([*make_spans(1, trace_id="mine"), *make_spans(1)])
        sink.wait_for(spans=1)
    assert (forwarder.sent, forwarder.dropped) == (1, 1)


def test_a_batch_is_given_up_in_the_end() -> None:
    with closed_port() as url, Forwarder(url, retry_seconds=0.1, **SOON) as forwarder:
        lost = watch_losses(forwarder)
        forwarder.offer(make_spans(3))
        assert lost.wait(20)
    assert (forwarder.sent, forwarder.dropped) == (0, 3)


def watch_losses(forwarder: Forwarder) -> threading.Event:
    """An event that is set when something is dropped."""
    lost = threading.Event()
    losses = forwarder._losses
    add = losses.add

    def watched(count: int, reason: str) -> None:
        add(count, reason)
        lost.set()

    losses.add = watched
    return lost


def test_the_queue_is_bounded_and_offering_never_waits(caplog: pytest.LogCaptureFixture) -> None:
    spans = [encode_span(span) for span in make_spans(100)]
    with closed_port() as url:
        forwarder = Forwarder(url, queue_bytes=20_000, **SOON)
        with forwarder:
            begin = time.monotonic()
            for _ in range(50):
                forwarder.offer(spans)
            assert time.monotonic() - begin < 2.0
            assert forwarder.waiting < 40
            forwarder.stop(timeout=0.05)
    assert forwarder.dropped == 5000
    assert "too many were waiting already" in caplog.text
    assert "stopped before they could be sent" in caplog.text


def test_stopping_sends_what_is_queued_without_waiting_for_more(sink: Any) -> None:
    forwarder = Forwarder(sink.url, batch_spans=10, batch_seconds=60.0)
    forwarder.start()
    forwarder.offer(make_spans(35))
    forwarder.stop()
    assert len(sink.spans) == 35
    forwarder.offer(make_spans(1))
    assert (forwarder.sent, forwarder.dropped) == (35, 1)


def test_stopping_has_a_limit() -> None:
    with closed_port() as url:
        forwarder = Forwarder(url)
        forwarder.start()
        forwarder.offer(make_spans(3))
        begin = time.monotonic()
        forwarder.stop(timeout=0.2)
        assert time.monotonic() - begin < 5.0
        forwarder.stop()
    assert forwarder.dropped == 3


def test_stopping_hurries_a_pause(sink: Any) -> None:
    sink.script = [Response(status_code=503, headers={"retry-after": "60"})]
    forwarder = Forwarder(sink.url, batch_seconds=0.01)
    forwarder.start()
    forwarder.offer(make_spans(1))
    sink.wait_for(refused=1)
    forwarder.stop(timeout=10.0)
    assert forwarder.sent == 1


def test_a_forwarder_starts_once(sink: Any) -> None:
    with Forwarder(sink.url) as forwarder, pytest.raises(RuntimeError, match="once"):
        forwarder.start()


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:4318", "ftp://a/b", "http://", "http://a:0", "http://a:x", "http://[a"]
)
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="OTLP endpoint"):
        Forwarder(endpoint)


def test_the_path_of_traces_is_added_to_a_bare_endpoint() -> None:
    assert traces_url("http://a:4318") == "http://a:4318/v1/traces"
    assert traces_url("https://a/?k=v") == "https://a/v1/traces?k=v"
    assert traces_url("https://a/otlp/traces") == "https://a/otlp/traces"


def test_secrets_in_an_endpoint_are_not_shown() -> None:
    assert shown_url("https://user:secret@host/v1/traces?key=secret") == "https://host/v1/traces"
    with pytest.raises(ConfigurationError) as raised:
        Forwarder("ftp://user:secret@host")
    assert "secret" not in str(raised.value)


# Losses


def test_losses_are_reported_at_once_and_then_once_per_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    losses = Losses(logging.getLogger("test"), "spans were lost", clock=lambda: now)
    for _ in range(3):
        losses.add(2, "full")
    losses.add(1, "down")
    assert [record.getMessage() for record in caplog.records] == ["2 spans were lost (2: full); 2 in all"]
    assert losses.until_due() == 60.0
    now += 60.0
    assert losses.until_due() == 0.0
    losses.report()
    assert caplog.records[-1].getMessage() == "5 spans were lost (4: full; 1: down); 7 in all"
    losses.report(now=True)
    assert len(caplog.records) == 2
    assert losses.until_due() is None


def test_a_flood_of_reasons_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(logging.getLogger("test"), "spans were lost", clock=lambda: 100.0)
    for number in range(100):
        losses.add(1, f"reason {number}")
    losses.report(now=True)
    assert "79: other reasons" in caplog.text


def test_a_forwarder_reports_while_nothing_else_happens(caplog: pytest.LogCaptureFixture, sink: Any) -> None:
    sink.script = [Response(status_code=400), Response(status_code=400)]
    reported = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith("2 in all"):
                reported.set()

    handler = Handler()
    logging.getLogger("lightning_store_http").addHandler(handler)
    try:
        with Forwarder(sink.url, batch_spans=1, report_seconds=0.2) as forwarder:
            forwarder.offer(make_spans(2))
            assert reported.wait(20)
    finally:
        logging.getLogger("lightning_store_http").removeHandler(handler)


# Through a store


class JournalStore(InMemoryLightningStore):
    """Keeps its records, so that another store can know the same rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def journal(self, record: Record) -> None:
        if not isinstance(record, Span):
            self.records.append(record)


def copy_rollouts(store: JournalStore) -> InMemoryLightningStore:
    copy = InMemoryLightningStore()
    copy.restore(store.records)
    return copy


async def write_every_way(store: LightningStore, rollout_id: str, attempt_id: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    spans = make_spans(4, rollout_id, attempt_id)
    spans[0].events.append(Event(name="event", timestamp=1.7e9, attributes={"a": [1, 2]}))
    await store.add_span(spans[0])
    await store.add_spans(spans[1:3])
    # The clock of this one is behind; its place is still after the others.
    await store.add_encoded_spans([encode_span(spans[3].detached(start_time=1.0, end_time=2.0))])
    span = TracerProvider().get_tracer("library", "1.0").start_span("sdk")
    span.end()
    await store.add_otel_span(rollout_id, attempt_id, span)


async def test_a_server_that_forwards_to_another_gives_it_the_same_spans(serve: Serve) -> None:
    ours = JournalStore()
    started = await ours.start_rollout({"task": 1})
    ids = (started.rollout_id, started.attempt.attempt_id)
    theirs = copy_rollouts(ours)
    with serve(Starlette(routes=routes(theirs))) as url, Forwarder(url, **SOON) as forwarder:
        store = forwarding(ours, forwarder)
        await write_every_way(store, *ids)
    assert forwarder.dropped == 0
    sent, received = await ours.query_spans(*ids), await theirs.query_spans(*ids)
    assert len(received) == 5
    assert [span.sequence_id for span in received] == [1, 2, 3, 4, 5]
    assert received == sent


async def test_many_spans_of_one_attempt_are_read_together(serve: Serve) -> None:
    ours = JournalStore()
    started = await ours.start_rollout(None)
    ids = (started.rollout_id, started.attempt.attempt_id)
    theirs = copy_rollouts(ours)
    with serve(Starlette(routes=routes(theirs))) as url, Forwarder(url, **SOON) as forwarder:
        await forwarding(ours, forwarder).add_spans(make_spans(40, *ids)[::-1])
    assert await theirs.query_spans(*ids) == await ours.query_spans(*ids)


async def test_only_new_spans_are_forwarded(sink: Any) -> None:
    inner = InMemoryLightningStore()
    started = await inner.start_rollout(None)
    spans = make_spans(2, started.rollout_id, started.attempt.attempt_id)
    with Forwarder(sink.url, **SOON) as forwarder:
        store = forwarding(inner, forwarder)
        await store.add_spans(spans)
        await store.add_spans(spans)
        await store.add_encoded_spans([encode_span(span) for span in spans])
    assert sorted(span.name for span in sink.spans) == ["span 0", "span 1"]


async def test_a_forwarding_store_is_the_store_in_all_else(sink: Any) -> None:
    inner = InMemoryLightningStore()
    store = forwarding(inner, Forwarder(sink.url))
    assert isinstance(store, LightningStore)
    assert store.capabilities == inner.capabilities
    assert store.location == inner.location
    rollout = await store.enqueue_rollout({"task": 1}, idempotency_key="key")
    assert await inner.get_rollout_by_id(rollout.rollout_id) == rollout
    [taken] = await store.dequeue_rollouts(3, "worker")
    assert taken.rollout_id == rollout.rollout_id
    assert (await store.statistics()).attempts == 1
    await store.close()


async def test_a_write_that_fails_is_not_forwarded(sink: Any) -> None:
    with Forwarder(sink.url, **SOON) as forwarder:
        store = forwarding(InMemoryLightningStore(), forwarder)
        with pytest.raises(LookupError):
            await store.add_spans(make_spans(1))
    assert (forwarder.sent, forwarder.dropped) == (0, 0)
