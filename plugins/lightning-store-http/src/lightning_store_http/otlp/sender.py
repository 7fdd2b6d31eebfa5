"""Sends one OTLP/HTTP request until it has an answer that stands."""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from lightning_core.errors import ConfigurationError

from .names import TRACES_PATH

if TYPE_CHECKING:
    from types import TracebackType

    import aiohttp

__all__ = ["Outcome", "Sender", "shown_url", "traces_url"]

LONGEST_BACKOFF = 30.0
"""The longest pause between two tries that the endpoint has not asked for, in seconds."""

_RETRYABLE = frozenset({429, 502, 503, 504})
_PROTOBUF = "application/x-protobuf"
_ANSWER_BYTES = 64 * 1024


class Outcome(NamedTuple):
    """How sending a request ended.

    Attributes:
        taken: The endpoint has taken it, but for ``rejected`` of its spans.
        rejected: How many spans it did not take.
        reason: Why it did not take them, or any.
        too_large: It takes no requests as large as this one.
    """

    taken: bool
    rejected: int = 0
    reason: str = ""
    too_large: bool = False


class _Failure(NamedTuple):
    """A try that may be repeated, after ``retry_after`` seconds if the endpoint says so."""

    reason: str
    retry_after: float = 0.0


class Sender:
    """Sends requests to one endpoint; used as an async context manager.

    Args:
        url: The endpoint's full URL.
        headers: Sent along.
        timeout: Of one try, in seconds.
        retry_seconds: How long one request is tried again, in seconds.
        first_backoff: About the first pause between two tries, in seconds.
        compress: With gzip.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: float,
        retry_seconds: float,
        first_backoff: float,
        compress: bool,
    ) -> None:
        self._url = url
        self._headers = {"content-type": _PROTOBUF, **headers}
        if compress:
            self._headers["content-encoding"] = "gzip"
        self._compress = compress
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._first_backoff = first_backoff
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=self._timeout), trust_env=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, body: bytes, hurry: asyncio.Event) -> Outcome:
        """Send an encoded request.

        Args:
            body: The request.
            hurry: Once it is set, pauses are cut short: somebody waits for the end.
        """
        if self._compress:
            body = gzip.compress(body, 6)
        give_up = time.monotonic() + self._retry_seconds
        backoff = self._first_backoff
        while True:
            outcome = await self._try(body)
            if isinstance(outcome, Outcome):
                return outcome
            pause = max(random.uniform(0.5, 1.0) * backoff, outcome.retry_after)
            if time.monotonic() + pause > give_up:
                return Outcome(taken=False, reason=outcome.reason)
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            await _pause(pause, hurry)

    async def _try(self, body: bytes) -> Outcome | _Failure:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                status = response.status
                content = await response.content.read(_ANSWER_BYTES)
                plain = response.content_type != _PROTOBUF
                retry_after = _parse_retry_after(response.headers.get("retry-after", ""))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _Failure(f"the endpoint does not answer ({str(error) or type(error).__name__})")
        if status // 100 == 2:
            return _read_success(b"" if plain else content)
        reason = f"the endpoint answered {status}{'' if plain else _read_status(content)}"
        if status in _RETRYABLE:
            return _Failure(reason, retry_after)
        return Outcome(taken=False, reason=reason, too_large=status == 413)


async def _pause(seconds: float, hurry: asyncio.Event) -> None:
    if hurry.is_set():
        await asyncio.sleep(min(seconds, 0.2))
        return
    try:
        async with asyncio.timeout(seconds):
            await hurry.wait()
    except TimeoutError:
        return


def _read_success(content: bytes) -> Outcome:
    try:
        partial = ExportTraceServiceResponse.FromString(content).partial_success
    except DecodeError:
        # It has said that all is well.
        return Outcome(taken=True)
    reason = f"the endpoint rejected them: {partial.error_message[:300]}"
    return Outcome(taken=True, rejected=max(partial.rejected_spans, 0), reason=reason)


def _read_status(content: bytes) -> str:
    try:
        message = Status.FromString(content).message
    except DecodeError:
        return ""
    return f" ({message[:300]})" if message else ""


def _parse_retry_after(header: str) -> float:
    """Read seconds or a date; 0 for nothing of the kind."""
    if header.strip().isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)


def traces_url(endpoint: str) -> str:
    """Return the URL to send traces to; ``/v1/traces`` is added to an endpoint without a path.

    Raises:
        ConfigurationError: If it is no ``http`` or ``https`` URL.
    """
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    else:
        if valid and parts.path in ("", "/"):
            return parts._replace(path=TRACES_PATH).geturl()
    if not valid:
        raise ConfigurationError(
            f"{shown_url(endpoint)!r} is no OTLP endpoint; give a URL such as http://127.0.0.1:4318"
        )
    return endpoint


def shown_url(endpoint: str) -> str:
    """Return a URL without what may be secret in it: user, password and query."""
    address = endpoint.partition("?")[0]
    before, at, host = address.rpartition("@")
    return f"{before.partition('//')[0]}//{host}" if at else address
