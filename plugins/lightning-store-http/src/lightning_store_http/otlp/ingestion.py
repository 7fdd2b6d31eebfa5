"""The HTTP endpoint that takes OTLP traces into a store."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_core.errors import (
    SpanConflictError,
    StoreClosedError,
    StoreUnavailableError,
    UnknownAttemptError,
    UnknownRolloutError,
    UnserializableValueError,
)
from lightning_core.store.base import LightningStore
from lightning_core.types import Span

from .decoding import BodyTooLargeError, UndecodableBodyError, decode_json, decode_protobuf, decompress
from .incoming import LATEST, Incoming, read_request
from .losses import Losses
from .names import TRACES_PATH

__all__ = ["MAX_BODY_BYTES", "routes"]

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""The largest body taken, in bytes; the exporters' batches of 512 LLM calls with long prompts do get large."""

_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_CODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
_IN_THREAD = 32 * 1024
_SHOWN_REASONS = 8
_SHOWN_CHARACTERS = 300
# Codes of google.rpc.Status.
_INVALID_ARGUMENT, _INTERNAL, _UNAVAILABLE = 3, 13, 14


def routes(
    store: LightningStore, *, max_body_bytes: int = MAX_BODY_BYTES, retry_after_seconds: int = 5
) -> list[Route]:
    """Make the route ``POST /v1/traces``, which stores the spans of OTLP/HTTP requests.

    Spans that belong to no rollout of the store are rejected in the answer's ``partial_success``; the others of the
    request are stored, in one call, in the order in which they ended.

    Args:
        store: Where the spans go.
        max_body_bytes: The largest body, in bytes, both as it is sent and when it is decompressed.
        retry_after_seconds: When to try again if the store is not available, as the answer says.
    """
    return [
        Route(
            TRACES_PATH,
            _Endpoint(store, max_body_bytes, retry_after_seconds).export,
            methods=["POST"],
            name="otlp_traces",
        )
    ]


class _Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(_shorten(message))
        self.status = status
        self.code = code
        self.headers = headers


class _Endpoint:
    def __init__(self, store: LightningStore, max_body_bytes: int, retry_after_seconds: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._retry_after_seconds = retry_after_seconds
        self._rejected = Losses(logger, "spans that came as OTLP were rejected")

    async def export(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        answer_type = _PROTOBUF if content_type == _PROTOBUF else _JSON
        try:
            rejected = await self._export(request, content_type)
        except _Refusal as refusal:
            return _answer(
                Status(code=refusal.code, message=str(refusal)), answer_type, refusal.status, refusal.headers
            )
        except ClientDisconnect:
            # Nobody is there to read it.
            return Response(status_code=400)
        except Exception:
            logger.exception("an OTLP request failed")
            return _answer(Status(code=_INTERNAL, message="internal error"), answer_type, 500)
        answer = ExportTraceServiceResponse()
        if rejected:
            answer.partial_success.rejected_spans = rejected.total()
            answer.partial_success.error_message = _explain(rejected)
            for reason, count in rejected.items():
                self._rejected.add(count, _shorten(reason))
        return _answer(answer, answer_type, 200)

    async def _export(self, request: Request, content_type: str) -> Counter[str]:
        if content_type not in (_PROTOBUF, _JSON):
            raise _Refusal(
                415,
                _INVALID_ARGUMENT,
                f"Content-Type must be {_PROTOBUF} or {_JSON}",
                {"accept": f"{_PROTOBUF}, {_JSON}"},
            )
        coding = request.headers.get("content-encoding", "").strip().lower()
        if coding not in _CODINGS:
            raise _Refusal(
                415,
                _INVALID_ARGUMENT,
                "Content-Encoding must be gzip, deflate or identity",
                {"accept-encoding": "gzip, deflate"},
            )
        body = await self._read_body(request)
        headers = request.headers

        def read() -> Incoming:
            raw = decompress(body, coding, self._max_body_bytes)
            return read_request(decode_json(raw) if content_type == _JSON else decode_protobuf(raw), headers)

        try:
            # Other requests must not wait until a large one is decoded.
            incoming = await asyncio.to_thread(read) if len(body) > _IN_THREAD or coding else read()
        except BodyTooLargeError as error:
            raise _Refusal(413, _INVALID_ARGUMENT, str(error)) from None
        except UndecodableBodyError as error:
            raise _Refusal(400, _INVALID_ARGUMENT, str(error)) from None
        try:
            return incoming.rejected + await _store_spans(self._store, incoming.spans)
        except (StoreUnavailableError, StoreClosedError) as error:
            logger.warning("an OTLP request could not be stored: %s", error)
            raise _Refusal(
                503,
                _UNAVAILABLE,
                "the store is not available now; send this request again",
                {"retry-after": str(self._retry_after_seconds)},
            ) from None

    async def _read_body(self, request: Request) -> bytes:
        limit = self._max_body_bytes
        parts: list[bytes] = []
        size = 0
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _Refusal(413, _INVALID_ARGUMENT, f"the body is larger than {limit} bytes")
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _Refusal(413, _INVALID_ARGUMENT, f"the body is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)


def _answer(
    message: Message, content_type: str, status: int, headers: dict[str, str] | None = None
) -> Response:
    body = MessageToJson(message, indent=None) if content_type == _JSON else message.SerializeToString()
    return Response(body, status, headers, media_type=content_type)


def _shorten(reason: str) -> str:
    return reason if len(reason) <= _SHOWN_CHARACTERS else f"{reason[:_SHOWN_CHARACTERS]}…"


def _explain(rejected: Counter[str]) -> str:
    reasons = [
        f"{count} rejected: {_shorten(reason)}" for reason, count in rejected.most_common(_SHOWN_REASONS)
    ]
    if len(rejected) > _SHOWN_REASONS:
        reasons.append(f"and {len(rejected) - _SHOWN_REASONS} other reasons")
    return "; ".join(reasons)


async def _store_spans(store: LightningStore, spans: Sequence[Span]) -> Counter[str]:
    """Store spans, in one call if all can be stored, and return how many cannot be, by the reason."""
    spans, rejected = await _resolve_latest(store, spans)
    if not spans:
        return rejected
    try:
        await store.add_spans(spans)
    except (UnknownRolloutError, UnknownAttemptError):
        known, unknown = await _reject_unknown(store, spans)
        if unknown:
            return rejected + unknown + await _store_spans(store, known)
        # It was there a moment later, or is gone again.
        return rejected + await _store_singly(store, spans)
    except (SpanConflictError, UnserializableValueError):
        return rejected + await _store_singly(store, spans)
    return rejected


async def _resolve_latest(store: LightningStore, spans: Sequence[Span]) -> tuple[list[Span], Counter[str]]:
    """Put in the latest attempt where a span names none."""
    attempts: dict[str, str | None] = {}
    for rollout_id in {span.rollout_id for span in spans if span.attempt_id == LATEST}:
        attempt = await store.get_latest_attempt(rollout_id)
        attempts[rollout_id] = attempt.attempt_id if attempt is not None else None
    found: list[Span] = []
    rejected: Counter[str] = Counter()
    for span in spans:
        if span.attempt_id != LATEST:
            found.append(span)
        elif (attempt_id := attempts[span.rollout_id]) is not None:
            found.append(span.replace(attempt_id=attempt_id))
        else:
            rejected[f"this store has no rollout {span.rollout_id!r} with an attempt"] += 1
    return found, rejected


async def _reject_unknown(store: LightningStore, spans: Sequence[Span]) -> tuple[list[Span], Counter[str]]:
    """Take out the spans whose attempt is not in the store."""
    rollout_ids = {span.rollout_id for span in spans}
    known = {
        (rollout_id, attempt.attempt_id)
        for rollout_id in rollout_ids
        for attempt in await store.query_attempts(rollout_id)
    }
    found: list[Span] = []
    rejected: Counter[str] = Counter()
    for span in spans:
        if (span.rollout_id, span.attempt_id) in known:
            found.append(span)
        else:
            rejected[f"this store has no attempt {span.attempt_id!r} of a rollout {span.rollout_id!r}"] += 1
    return found, rejected


async def _store_singly(store: LightningStore, spans: Sequence[Span]) -> Counter[str]:
    rejected: Counter[str] = Counter()
    for span in spans:
        try:
            await store.add_spans([span])
        except (
            UnknownRolloutError,
            UnknownAttemptError,
            SpanConflictError,
            UnserializableValueError,
        ) as error:
            rejected[str(error)] += 1
    return rejected
