"""AgentOps' client, for those who have a key: it works with our own tracer provider, and sends what is stored.

``agentops.init`` is not called. It replaces ``print`` and the global tracer provider, writes a log file into the
working directory, takes over the log of OpenTelemetry, sends metrics to a fixed address, and its exporter fails with
OpenTelemetry 1.45. The client is put into the same state without all that, so that AgentOps' decorators and
``agentops.start_trace`` work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from pydantic import SecretStr

from .attributes import KIND
from .runs import RunTracer

__all__ = ["Client"]

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
"""How long AgentOps may take to answer."""
RETRY_SECONDS = 60.0
"""How long a key that was refused is not tried again."""
QUEUED_SPANS = 65_536
"""The most spans that wait to be sent. Those that end after them are stored here, and missing at AgentOps."""


class Client:
    """Sends the spans of a provider to AgentOps, between :meth:`start` and :meth:`stop`.

    Args:
        provider: Whose spans.
        key: The user's key.
        endpoint: Where it is exchanged for a token.
        exporter_endpoint: Where spans are sent.
    """

    def __init__(
        self, provider: TracerProvider, key: SecretStr, endpoint: str, exporter_endpoint: str
    ) -> None:
        self._provider = provider
        self._key = key
        self._endpoint = endpoint.rstrip("/")
        self._exporter_endpoint = exporter_endpoint
        self._forward = _Forward()
        self._owns_agentops = False
        # The SDK has no way to remove a processor; this one stays, and does nothing when it is stopped.
        provider.add_span_processor(self._forward)

    def start(self) -> None:
        """Begin to send."""
        self._forward.target = BatchSpanProcessor(
            _Exporter(self._key, self._endpoint, self._exporter_endpoint),
            max_queue_size=QUEUED_SPANS,
            schedule_delay_millis=1000,
            max_export_batch_size=512,
            export_timeout_millis=1000 * TIMEOUT_SECONDS,
        )
        self._take_agentops()

    def stop(self) -> None:
        """Send what is left, and end."""
        self._leave_agentops()
        target, self._forward.target = self._forward.target, None
        if target is not None:
            target.shutdown()

    def _take_agentops(self) -> None:
        get_client, core = _agentops()
        if core.tracer.initialized:
            # By the program itself, or by another tracer of ours.
            return
        self._owns_agentops = True
        tracer: Any = core.tracer
        tracer.provider = self._provider
        tracer.get_tracer = self._get_tracer
        tracer._initialized = True
        client: Any = get_client()
        client.configure(
            api_key=self._key.get_secret_value(),
            endpoint=self._endpoint,
            exporter_endpoint=self._exporter_endpoint,
            instrument_llm_calls=False,
            auto_start_session=False,
        )
        client.api = import_module("agentops.client.api").ApiClient(self._endpoint)
        client.initialized = True

    def _get_tracer(self, name: str = "agentops") -> RunTracer:
        return RunTracer(self._provider.get_tracer(name))

    def _leave_agentops(self) -> None:
        if not self._owns_agentops:
            return
        get_client, core = _agentops()
        self._owns_agentops = False
        tracer: Any = core.tracer
        tracer.provider = None
        tracer._initialized = False
        del tracer.get_tracer
        client: Any = get_client()
        client.initialized = False
        client.config = type(client.config)()


def _agentops() -> tuple[Any, Any]:
    """Import AgentOps, which has no types; only those who have a key pay for it."""
    return import_module("agentops").get_client, import_module("agentops.sdk.core")


class _Forward(SpanProcessor):
    """Passes spans on while there is somebody to take them."""

    target: BatchSpanProcessor | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.target is not None and span.parent is None:
            # AgentOps shows a trace under the span that stands for its session.
            span.set_attribute(KIND, "session")

    def on_end(self, span: ReadableSpan) -> None:
        target = self.target
        if target is not None:
            target.on_end(span)

    def shutdown(self) -> None:
        """The target is shut down by who sets it."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        # AgentOps asks for it at the end of each span that its decorators make.
        return True


class _Exporter(SpanExporter):
    """Exports over OTLP/HTTP, with the token that AgentOps gives for a key.

    The SDK's own exporter is of no use here: it adds the headers that the environment has for other endpoints, and
    with them their secrets.
    """

    def __init__(self, key: SecretStr, endpoint: str, exporter_endpoint: str) -> None:
        self._key = key
        self._endpoint = endpoint
        self._exporter_endpoint = exporter_endpoint
        self._session = requests.Session()
        self._token: str | None = None
        self._pause_until = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; on the background thread of the batches."""
        body = encode_spans(spans).SerializeToString()
        why = ""
        # Twice, since a token that was good may have expired.
        for _ in range(2):
            if self._token is None and time.monotonic() >= self._pause_until:
                self._log_in()
            if self._token is None:
                break
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/x-protobuf"}
            try:
                answer = self._session.post(
                    self._exporter_endpoint, data=body, headers=headers, timeout=TIMEOUT_SECONDS
                )
            except requests.RequestException as error:
                why = type(error).__name__
                break
            if answer.ok:
                return SpanExportResult.SUCCESS
            why = str(answer.status_code)
            if answer.status_code not in (401, 403):
                break
            self._token = None
        if why:
            logger.warning(
                "%d spans did not reach AgentOps at %s: %s", len(spans), self._exporter_endpoint, why
            )
        return SpanExportResult.FAILURE

    def _log_in(self) -> None:
        url = f"{self._endpoint}/v3/auth/token"
        try:
            answer = self._session.post(
                url, json={"api_key": self._key.get_secret_value()}, timeout=TIMEOUT_SECONDS
            )
            if answer.ok:
                self._token = str(answer.json()["token"])
                return
            why = str(answer.status_code)
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            why = type(error).__name__
        self._pause_until = time.monotonic() + RETRY_SECONDS
        logger.warning(
            "AgentOps gives no token for the api_key of the tracer (%s: %s); traces are stored and not sent there. "
            "The next try is in %g s",
            url,
            why,
            RETRY_SECONDS,
        )

    def shutdown(self) -> None:
        """End."""
        self._session.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back here."""
        return True
