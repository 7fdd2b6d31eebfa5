"""The route takes what the OTLP/HTTP specification says, answers as it says, and stores what can be stored."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from lightning_store_http.otlp import routes
from lightning_store_http.otlp.decoding import BodyTooLargeError, decompress
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from starlette.applications import Starlette

from lightning_core.errors import StoreUnavailableError
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import Span

Post = Callable[..., Awaitable[Any]]
MakeSpan = Callable[..., OtlpSpan]
MakeRequest = Callable[..., ExportTraceServiceRequest]
Ids = tuple[str, str]

JSON = "application/json"


def accepted(answer: Any) -> ExportTraceServiceResponse:
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-protobuf"
    return ExportTraceServiceResponse.FromString(answer.body)


def as_json(request: ExportTraceServiceRequest) -> Any:
    """What an OTLP/JSON exporter sends: ids in hex, which protobuf's own JSON has in base64."""
    document = json_format.MessageToDict(request, use_integers_for_enums=True)

    def fix(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base64.b64decode(item).hex()
                if key in ("traceId", "spanId", "parentSpanId")
                else fix(item)
                for key, item in value.items()
            }
        return [fix(item) for item in value] if isinstance(value, list) else value

    return fix(document)


async def test_spans_are_stored_in_the_latest_attempt(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(make_span(2), make_span(1), resource={"lightning.rollout_id": rollout[0]})
    answer = accepted(await post(request))
    assert not answer.HasField("partial_success")
    spans = await store.query_spans(*rollout)
    assert [(span.name, span.sequence_id) for span in spans] == [("span 1", 1), ("span 2", 2)]


async def test_json_and_protobuf_are_stored_alike(
    store: InMemoryLightningStore, post: Post, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    span = make_span(1, parent_span_id=b"\x02" * 8, kind=3, attributes={"text": "é", "n": 3, "list": [1.5]})
    span.links.add(trace_id=b"\x05" * 16, span_id=b"\x06" * 8)
    span.events.add(name="e", time_unix_nano=1_700_000_000_000_000_001)
    span.status.code = 2
    stored: list[Span] = []
    for content_type in ("application/x-protobuf", JSON):
        started = await store.start_rollout(None)
        request = make_request(span, resource={"lightning.rollout_id": started.rollout_id})
        body = json.dumps(as_json(request)).encode() if content_type == JSON else request.SerializeToString()
        answer = await post(body, content_type=content_type)
        assert answer.status == 200
        stored += await store.query_spans(started.rollout_id)
    assert stored[0].span_id == "0000000000000001"
    assert (
        stored[1].detached(
            rollout_id=stored[0].rollout_id, attempt_id=stored[0].attempt_id, resource=stored[0].resource
        )
        == stored[0]
    )


async def test_json_answers_are_json(
    post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(make_span(1), resource={"lightning.rollout_id": rollout[0]})
    answer = await post(json.dumps(as_json(request)).encode(), content_type="application/json; charset=utf-8")
    assert (answer.status, answer.headers["content-type"], json.loads(answer.body)) == (200, JSON, {})
    answer = await post(json.dumps(as_json(make_request(make_span(2)))).encode(), content_type=JSON)
    assert answer.status == 200
    partial = json.loads(answer.body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "lightning.rollout_id" in partial["errorMessage"]


async def test_json_is_read_leniently(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    document = as_json(
        make_request(make_span(1), make_span(2), resource={"lightning.rollout_id": rollout[0]})
    )
    first, second = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    first["traceId"] = first["traceId"].upper()
    first["name"] = "half a \ud83d pair"
    first["endTimeUnixNano"] = int(first["endTimeUnixNano"])
    first["somethingNew"] = {"a": [1]}
    second["parentSpanId"] = "not hexadecimal"
    answer = await post(json.dumps(document).encode(), content_type=JSON)
    partial = json.loads(answer.body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "parent_span_id" in partial["errorMessage"]
    assert [span.name for span in await store.query_spans(*rollout)] == ["half a \\ud83d pair"]


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("GZIP", lambda body: gzip.compress(body[:20]) + gzip.compress(body[20:])),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
    ],
)
async def test_compressed_bodies_are_read(
    coding: str,
    compress: Callable[[bytes], bytes],
    store: InMemoryLightningStore,
    post: Post,
    rollout: Ids,
    make_span: MakeSpan,
    make_request: MakeRequest,
) -> None:
    request = make_request(make_span(1), resource={"lightning.rollout_id": rollout[0]})
    answer = accepted(await post(compress(request.SerializeToString()), content_encoding=coding))
    assert not answer.HasField("partial_success")
    assert len(await store.query_spans(*rollout)) == 1


async def test_an_empty_request_is_a_success(post: Post) -> None:
    assert not accepted(await post(b"")).HasField("partial_success")


BOMB = gzip.compress(bytes(50_000_000), mtime=0)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff\xff", {}, 400),
        (b"", {"content_type": JSON}, 400),
        (b"[]", {"content_type": JSON}, 400),
        (b"[" * 100_000, {"content_type": JSON}, 400),
        (b'{"resourceSpans": 1}', {"content_type": JSON}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [1]}]}]}', {"content_type": JSON}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 1}]}]}]}', {"content_type": JSON}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": {}}]}]}]}', {"content_type": JSON}, 400),
        (b"\xff", {"content_type": JSON}, 400),
        (b"no gzip", {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"1234567890", mtime=0)[:-4], {"content_encoding": "gzip"}, 400),
        (b"no zlib", {"content_encoding": "deflate"}, 400),
        (b"", {"content_type": "text/plain"}, 415),
        (b"", {"content_type": ""}, 415),
        (b"", {"content_encoding": "br"}, 415),
        (bytes(200_001), {}, 413),
        (b"", {"content_length": "200001"}, 413),
        (BOMB, {"content_encoding": "gzip"}, 413),
    ],
)
async def test_bad_requests_are_refused_for_good(
    body: bytes, headers: dict[str, str], status: int, post: Post
) -> None:
    answer = await post(body, **headers)
    assert answer.status == status
    if headers.get("content_type", "application/x-protobuf") == "application/x-protobuf":
        assert answer.headers["content-type"] == "application/x-protobuf"
        message = Status.FromString(answer.body)
        code, text = message.code, message.message
    else:
        assert answer.headers["content-type"] == JSON
        document = json.loads(answer.body)
        code, text = document["code"], document["message"]
    assert code == 3
    assert text
    assert len(text) < 400
    assert "Traceback" not in text


async def test_no_more_is_decompressed_than_is_allowed() -> None:
    with pytest.raises(BodyTooLargeError, match="1000 bytes"):
        decompress(gzip.compress(bytes(600)) * 2, "gzip", 1000)
    assert decompress(gzip.compress(bytes(500)) * 2, "gzip", 1000) == bytes(1000)


async def test_spans_of_unknown_rollouts_are_rejected_and_the_rest_is_stored(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    queued = await store.enqueue_rollout(None)
    rollout_id, attempt_id = rollout
    owners: list[dict[str, str]] = [
        {"rollout_id": rollout_id},
        {"rollout_id": "ro-unknown"},
        {"rollout_id": "ro-unknown", "attempt_id": "at-unknown"},
        {"rollout_id": rollout_id, "attempt_id": "at-unknown"},
        {"rollout_id": rollout_id, "attempt_id": attempt_id},
        {"rollout_id": queued.rollout_id},
        {},
    ]
    request = make_request(
        *(
            make_span(number, attributes={f"lightning.{key}": value for key, value in owner.items()})
            for number, owner in enumerate(owners, start=1)
        )
    )
    answer = accepted(await post(request))
    assert answer.partial_success.rejected_spans == 5
    for part in ("'ro-unknown'", "'at-unknown'", repr(queued.rollout_id), "x-lightning-rollout-id"):
        assert part in answer.partial_success.error_message
    assert [span.name for span in await store.query_spans(rollout_id)] == ["span 1", "span 5"]


async def test_rejected_spans_are_logged(
    post: Post, make_span: MakeSpan, make_request: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await post(make_request(make_span(1), make_span(2)))
    assert "2 spans that came as OTLP were rejected" in caplog.text


async def test_an_endless_list_of_reasons_is_cut(
    post: Post, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(
        *(make_span(n, attributes={"lightning.rollout_id": f"ro-{n}" * 200}) for n in range(1, 41))
    )
    answer = accepted(await post(request))
    assert answer.partial_success.rejected_spans == 40
    assert "32 other reasons" in answer.partial_success.error_message
    assert len(answer.partial_success.error_message) < 4000


async def test_a_request_sent_twice_is_stored_once(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(make_span(1), make_span(2), resource={"lightning.rollout_id": rollout[0]})
    for _ in range(2):
        assert not accepted(await post(request)).HasField("partial_success")
    assert len(await store.query_spans(*rollout)) == 2


async def test_headers_name_the_rollout_of_a_whole_process(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    await store.start_attempt(rollout[0])
    await post(
        make_request(make_span(1)), x_lightning_rollout_id=rollout[0], x_lightning_attempt_id=rollout[1]
    )
    assert [span.attempt_id for span in await store.query_spans(rollout[0])] == [rollout[1]]


async def test_a_taken_sequence_id_rejects_that_span_alone(
    store: InMemoryLightningStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    resource = {"lightning.rollout_id": rollout[0]}
    await post(make_request(make_span(1), resource=resource))
    taken = make_span(2, attributes={"lightning.sequence_id": 1})
    answer = accepted(await post(make_request(taken, make_span(3), resource=resource)))
    assert answer.partial_success.rejected_spans == 1
    assert [span.name for span in await store.query_spans(*rollout)] == ["span 1", "span 3"]


class CountingStore(InMemoryLightningStore):
    """Counts writes, and fails as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.error: Exception | None = None

    async def add_spans(self, spans: Sequence[Span]) -> int:
        self.writes += 1
        if self.error is not None:
            raise self.error
        return await super().add_spans(spans)


@pytest.fixture
def counting() -> CountingStore:
    return CountingStore()


@pytest.fixture
def store(request: pytest.FixtureRequest) -> InMemoryLightningStore:
    if "counting" in request.fixturenames:
        return request.getfixturevalue("counting")
    return InMemoryLightningStore()


async def test_a_request_is_one_write(
    counting: CountingStore, post: Post, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    ids = [(await counting.start_rollout(None)).rollout_id for _ in range(3)]
    request = make_request(
        *(make_span(n, attributes={"lightning.rollout_id": ids[n % 3]}) for n in range(1, 31))
    )
    assert not accepted(await post(request)).HasField("partial_success")
    assert counting.writes == 1


async def test_an_unavailable_store_is_worth_another_try(
    counting: CountingStore, post: Post, rollout: Ids, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    counting.error = StoreUnavailableError("the disk at /secret is full")
    answer = await post(make_request(make_span(1), resource={"lightning.rollout_id": rollout[0]}))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert Status.FromString(answer.body).code == 14
    assert b"secret" not in answer.body


async def test_a_bug_is_answered_plainly_and_not_worth_another_try(
    counting: CountingStore,
    post: Post,
    rollout: Ids,
    make_span: MakeSpan,
    make_request: MakeRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    counting.error = KeyError("secret")
    answer = await post(make_request(make_span(1), resource={"lightning.rollout_id": rollout[0]}))
    assert answer.status == 500
    assert Status.FromString(answer.body).message == "internal error"
    assert "an OTLP request failed" in caplog.text


async def test_a_sender_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette(routes=routes(InMemoryLightningStore()))
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: dict[str, Any]) -> None:
        pass

    headers = [(b"content-type", b"application/x-protobuf")]
    scope = {"type": "http", "method": "POST", "path": "/v1/traces", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert not caplog.records
