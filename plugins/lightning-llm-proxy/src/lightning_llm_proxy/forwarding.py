"""Passes requests on: asks one upstream after the other until one answers."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from .answers import Refusal
from .calls import Call
from .engines import Wishes, wishes_for
from .jsons import write_json
from .settings import EngineName
from .upstreams import REST_SECONDS, Backend, Upstreams

__all__ = ["Answering", "Forwarder", "Passing", "passed_up", "unknown_model", "unreachable", "words"]

logger = logging.getLogger(__name__)

_NOT_PASSED_UP: Final = frozenset(
    {
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    }
)
# aiohttp warns of larger bodies that are not read from a file.
_LARGE: Final = 2**20


@dataclass(slots=True)
class Passing:
    """A request on its way.

    Attributes:
        path: The API.
        request: The request, read.
        body: The same as it came.
        headers: What is passed up.
        call: What is recorded of it, if it belongs to an attempt.
    """

    path: str
    request: dict[str, Any]
    body: bytes
    headers: dict[str, str]
    call: Call | None


@dataclass(slots=True)
class Answering:
    """An upstream that has begun to answer."""

    backend: Backend
    engine: EngineName
    wishes: Wishes
    response: aiohttp.ClientResponse


def passed_up(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request that upstreams get: never the client's own key."""
    passed = {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED_UP}
    passed["Accept-Encoding"] = "identity"
    return passed


class Forwarder:
    """Asks upstreams. Belongs to one event loop.

    Args:
        upstreams: Where requests go.
        session: The HTTP client.
    """

    def __init__(self, upstreams: Upstreams, session: aiohttp.ClientSession) -> None:
        self._upstreams = upstreams
        self._session = session

    async def find_answer(self, passing: Passing) -> Answering:
        """Ask one upstream after the other until one answers, at least with an error. It must be released after that.

        Raises:
            Refusal: If none can be reached, or there is none.
        """
        model = passing.request.get("model")
        call = passing.call
        failed: set[Backend] = set()
        refusal: Refusal | None = None
        repeated = False
        while True:
            begin = time.perf_counter()
            backend = await self._upstreams.acquire(model, failed)
            if backend is None:
                raise refusal or Refusal(404, unknown_model(model, self._upstreams))
            if call is not None:
                call.waited(time.perf_counter() - begin)
            keep = False
            try:
                answering = await self._ask(backend, passing)
                again = _retriable(answering.response.status) and self._has_other(model, failed, backend)
                keep = not again
                if keep:
                    return answering
                reason = f"status {answering.response.status}"
                backend.rest(_retry_after(answering.response.headers))
                answering.response.close()
            except (aiohttp.ClientError, TimeoutError) as error:
                refusal = unreachable(backend, error)
                reason = refusal.message
                if not repeated and _is_stale(error):
                    repeated = again = True
                else:
                    backend.rest()
                    failed.add(backend)
                    again = self._has_other(model, failed, backend)
                if not again:
                    raise refusal from error
            else:
                failed.add(backend)
            finally:
                if not keep:
                    backend.release()
            if call is not None:
                call.retried(backend.settings.base_url, reason)

    def _has_other(self, model: object, failed: set[Backend], backend: Backend) -> bool:
        return any(each is not backend and each not in failed for each in self._upstreams.find(model))

    async def _ask(self, backend: Backend, passing: Passing) -> Answering:
        call = passing.call
        engine: EngineName = "none"
        wishes = Wishes()
        if call is not None:
            engine = await backend.engine(self._session)
            call.upstream, call.engine, call.secrets = backend.settings.base_url, engine, backend.secrets
            if not backend.refused_wishes:
                exact = backend.settings.exact_streams
                wishes = wishes_for(engine, passing.path, passing.request, exact_streams=exact)
        response = await self._send(backend, passing, wishes.changes)
        if response.status in (400, 422) and wishes.changes:
            # Perhaps the request is fine without what was added to it.
            plain_response = await self._send(backend, passing, {})
            if plain_response.status < 400:
                logger.warning(
                    "%s refuses to be asked for token ids as %s is (status %d); it is not asked again. "
                    "Set engine to what serves there, or to none",
                    backend.settings.base_url,
                    engine,
                    response.status,
                )
                backend.refused_wishes = True
            response.close()
            response, wishes = plain_response, Wishes()
        if call is not None:
            call.refused_wishes = backend.refused_wishes
            call.status = response.status
        if not _retriable(response.status):
            backend.recovered()
        return Answering(backend, engine, wishes, response)

    async def _send(
        self, backend: Backend, passing: Passing, changes: Mapping[str, Any]
    ) -> aiohttp.ClientResponse:
        model = backend.settings.model
        if model is not None and passing.request.get("model") != model:
            changes = {**changes, "model": model}
        body = _rewrite(passing.body, passing.request, changes)
        return await self._session.post(
            backend.url(passing.path),
            data=body if len(body) < _LARGE else io.BytesIO(body),
            headers={**passing.headers, **backend.headers},
            timeout=backend.timeout,
            allow_redirects=False,
        )


def unknown_model(model: object, upstreams: Upstreams) -> str:
    """Say that nobody serves a model, and what is served."""
    return f"no upstream serves a model {model!r}; served are: {', '.join(upstreams.names) or 'none'}"


def unreachable(backend: Backend, error: Exception) -> Refusal:
    """Make the refusal of a call whose upstream could not be asked, or gave no whole answer."""
    if isinstance(error, TimeoutError):
        return Refusal(
            504, f"the upstream {backend.settings.base_url} does not answer in time: {words(error)}"
        )
    return Refusal(502, f"the upstream {backend.settings.base_url} cannot be reached: {words(error)}")


def words(error: Exception) -> str:
    """Return an error in words, also where it has none of its own."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _rewrite(body: bytes, request: dict[str, Any], changes: Mapping[str, Any]) -> bytes:
    """Return the request with some fields changed; where none of them is in it, the rest stays as it came."""
    if not changes:
        return body
    if request and not any(name in request for name in changes):
        begin = body.index(b"{") + 1
        added = write_json(changes)
        return body[:begin] + added[1:-1] + b"," + body[begin:]
    left_out = {name for name, value in changes.items() if value is None}
    return write_json({name: value for name, value in {**request, **changes}.items() if name not in left_out})


def _retriable(status: int) -> bool:
    return status == 429 or status >= 500


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(REST_SECONDS, float(headers.get("Retry-After", "")))
    except ValueError:
        return REST_SECONDS


def _is_stale(error: Exception) -> bool:
    """Whether an idle connection was closed by the upstream just as it was used again."""
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) and not isinstance(
        error, aiohttp.ClientConnectorError
    )
