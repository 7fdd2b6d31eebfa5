"""One call of a model, from the request to the span that tells of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from lightning_core.types import Event, OtelResource, Span, SpanContext, TraceStatus

from .jsons import read_json, write_json
from .paths import Api
from .settings import EngineName

__all__ = ["Call", "without_keys"]

_MAX_ERROR = 500
_HIDDEN = "***"


class Call:
    """What is known of one call. Times are seconds; those that last are measured by a clock that never jumps.

    Args:
        rollout_id: Whose call it is.
        attempt_id: Of which attempt.
        api: The API that is called.
        body: The request as it came.
        traceparent: The client's own span, as in the W3C's header, if it sent one.

    Attributes:
        request: The request, read.
        engine: What serves the model.
        upstream: The base URL that was asked last.
        secrets: What must not be in the span.
        status: The HTTP status that the client gets.
        streamed: Whether the answer is a stream.
        retries: What went wrong before.
        answer: The answer, read.
        output: The answer as text.
        error: A word for what went wrong, and what to tell a person.
        disconnected: Whether the client went away before the end.
        refused_wishes: Whether the upstream refuses to be asked for token ids.
        first_byte: Seconds until the answer began.
        recorded: Whether it has ended and its span is made.
        assemble: Puts the answer of a stream together, from what has come of it.
    """

    def __init__(
        self, rollout_id: str, attempt_id: str, api: Api, body: bytes, traceparent: str | None = None
    ) -> None:
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.api = api
        self.body = body
        self.traceparent = traceparent
        self.request: dict[str, Any] = {}
        self.engine: EngineName = "none"
        self.upstream: str | None = None
        self.secrets: list[str] = []
        self.status: int | None = None
        self.streamed = False
        self.retries: list[Event] = []
        self.answer: dict[str, Any] = {}
        self.output = ""
        self.error: tuple[str, str] | None = None
        self.disconnected = False
        self.refused_wishes = False
        self.start_time = time.time()
        self._begin = time.perf_counter()
        self._queued = 0.0
        self.first_byte: float | None = None
        self.recorded = False
        self.assemble: Callable[[], dict[str, Any]] | None = None

    def waited(self, seconds: float) -> None:
        """Note that it waited so long for an upstream to be free."""
        self._queued += seconds

    def answered(self) -> None:
        """Note that the answer begins now."""
        if self.first_byte is None:
            self.first_byte = time.perf_counter() - self._begin

    def retried(self, upstream: str, reason: str) -> None:
        """Note that an upstream failed and another try follows."""
        attributes: dict[str, Any] = {"upstream": upstream, "reason": self._clean(reason)}
        self.retries.append(
            Event(name="lightning.llm_proxy.retry", attributes=attributes, timestamp=time.time())
        )

    def failed(self, kind: str, message: str) -> None:
        """Note why there is no answer, or no whole one; what was noted first counts.

        Args:
            kind: A status such as ``429``, or a word such as ``timeout``.
            message: What to tell a person.
        """
        if self.error is None:
            self.error = (kind, message[:_MAX_ERROR])

    def take(self, body: bytes) -> dict[str, Any]:
        """Take the whole answer as it came. Gives what it holds; an empty dict if it is no JSON object."""
        self.output = body.decode(errors="replace")
        try:
            answer = read_json(body)
        except ValueError:
            answer = None
        self.answer = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
        return self.answer

    def take_changed(self, answer: dict[str, Any]) -> None:
        """Take an answer in another form than it came."""
        self.answer = answer
        self.output = write_json(answer).decode() if answer else ""

    def end(self) -> Span:
        """Make the span, which ends now. The answer may be changed after that."""
        self.recorded = True
        if self.assemble is not None:
            self.take_changed(self.assemble())
        duration = time.perf_counter() - self._begin
        trace_id, parent_id = _parent(self.traceparent)
        span_id = f"{random.getrandbits(64) or 1:016x}"
        operation, model = self.api.operation, self.request.get("model")
        context = SpanContext.trusted(
            {"trace_id": trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}}
        )
        parent = None
        if parent_id is not None:
            parent = SpanContext.trusted(
                {"trace_id": trace_id, "span_id": parent_id, "is_remote": True, "trace_state": {}}
            )
        if self.error is None:
            status = {"status_code": "OK", "description": None}
        else:
            status = {"status_code": "ERROR", "description": self._clean(self.error[1])}
        return Span.trusted(
            {
                "rollout_id": self.rollout_id,
                "attempt_id": self.attempt_id,
                "sequence_id": 0,
                "trace_id": trace_id,
                "span_id": span_id,
                "parent_id": parent_id,
                "name": f"{operation} {model}" if isinstance(model, str) else operation,
                "status": TraceStatus.trusted(status),
                "attributes": self._attributes(duration),
                "events": self.retries,
                "links": [],
                "start_time": self.start_time,
                "end_time": self.start_time + duration,
                "context": context,
                "parent": parent,
                "resource": OtelResource.trusted(
                    {"attributes": {"service.name": "lightning-llm-proxy"}, "schema_url": ""}
                ),
            },
            {},
        )

    def _attributes(self, duration: float) -> dict[str, Any]:
        own = "lightning.llm_proxy."
        attributes: dict[str, Any] = {
            "openinference.span.kind": self.api.kind,
            "input.value": self.body.decode(errors="replace"),
            "input.mime_type": "application/json",
            "gen_ai.operation.name": self.api.operation,
            "gen_ai.provider.name": self._provider(),
            f"{own}api": self.api.path,
            f"{own}streamed": self.streamed,
            f"{own}retries": len(self.retries),
            f"{own}client_disconnected": self.disconnected,
            f"{own}queue_seconds": self._queued,
            f"{own}total_seconds": duration,
        }
        if self.output:
            attributes["output.value"] = self._clean(self.output)
            attributes["output.mime_type"] = "application/json" if self.answer else "text/plain"
        model = self.request.get("model")
        if isinstance(model, str):
            attributes["gen_ai.request.model"] = model
        if self.upstream is not None:
            attributes[f"{own}upstream"] = self.upstream
            attributes[f"{own}engine"] = self.engine
        if self.status is not None:
            attributes[f"{own}status"] = self.status
        if self.first_byte is not None:
            attributes[f"{own}first_byte_seconds"] = self.first_byte
        if self.refused_wishes:
            attributes[f"{own}capture_refused"] = True
        if self.error is not None:
            attributes["error.type"] = self.error[0]
        if self.answer:
            _describe_answer(self.answer, attributes)
        return attributes

    def _provider(self) -> str:
        if self.engine in ("vllm", "sglang", "llamacpp"):
            return self.engine
        return "anthropic" if self.api.path == "messages" else "openai"

    def _clean(self, text: str) -> str:
        """Take the upstreams' keys out of a text, in case that one was echoed."""
        for secret in self.secrets:
            if secret in text:
                text = text.replace(secret, _HIDDEN)
        return text


def without_keys(error: bytes, keys: Sequence[str]) -> bytes:
    """Take keys out of an error that goes to a client, which would log it, or give it as the reason of its own failure.

    Args:
        error: What the upstream says.
        keys: The keys that it may echo.
    """
    for key in keys:
        error = error.replace(key.encode(), _HIDDEN.encode())
    return error


def _describe_answer(answer: dict[str, Any], attributes: dict[str, Any]) -> None:
    for key, name in (("model", "gen_ai.response.model"), ("id", "gen_ai.response.id")):
        value = answer.get(key)
        if isinstance(value, str) and value:
            attributes[name] = value
    usage = answer.get("usage")
    if isinstance(usage, dict):
        counts = cast("dict[str, Any]", usage)
        for name, keys in _COUNTS.items():
            value = counts.get(keys[0], counts.get(keys[1]))
            if isinstance(value, int):
                attributes[name] = value
    choices = answer.get("choices")
    if isinstance(choices, list):
        found = [_reason(choice) for choice in cast("list[Any]", choices)]
    else:
        # Of Anthropic's Messages API, and of the Responses API.
        found = [answer.get("stop_reason", answer.get("status"))]
    reasons = [reason for reason in found if isinstance(reason, str)]
    if reasons:
        attributes["gen_ai.response.finish_reasons"] = reasons


_COUNTS = {
    "gen_ai.usage.input_tokens": ("prompt_tokens", "input_tokens"),
    "gen_ai.usage.output_tokens": ("completion_tokens", "output_tokens"),
}


def _reason(choice: Any) -> Any:
    return cast("dict[str, Any]", choice).get("finish_reason") if isinstance(choice, dict) else None


def _parent(traceparent: str | None) -> tuple[str, str | None]:
    """Return the trace that a call belongs to and the span that it was made in, or a new trace."""
    parts = (traceparent or "").split("-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16:
        try:
            if int(parts[1], 16) and int(parts[2], 16):
                return parts[1].lower(), parts[2].lower()
        except ValueError:
            pass
    return f"{random.getrandbits(128) or 1:032x}", None
