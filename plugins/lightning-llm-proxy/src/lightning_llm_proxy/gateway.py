"""Answers requests: passes them on to an upstream, and records what came of them."""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp
from aiohttp import web

from .answers import Refusal, list_models, plain
from .calls import Call
from .cutting import as_stream
from .engines import Wishes, gather, hide, wishes_for
from .jsons import read_json, write_json
from .paths import APIS, Target, read_path
from .recorder import Recorder
from .relay import Relay
from .settings import EngineName
from .upstreams import REST_SECONDS, Backend, Upstreams

__all__ = ["Gateway"]

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
_NOT_PASSED_DOWN: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "server",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
    }
)
_COUNTING: Final = "messages/count_tokens"
_EVENTS: Final = "text/event-stream"
# aiohttp warns of larger bodies that are not read from a file.
_LARGE: Final = 2**20


class _ClientGone(Exception):
    """The client has closed its connection."""


@dataclass(slots=True)
class _Passing:
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
class _Answering:
    """An upstream that has begun to answer."""

    backend: Backend
    engine: EngineName
    wishes: Wishes
    response: aiohttp.ClientResponse


class Gateway:
    """Answers the requests of one server. Belongs to one event loop.

    Args:
        upstreams: Where requests go.
        recorder: Where spans go.
        session: The HTTP client.
        token: What clients must send as their key.
        nonce: Tells this proxy from others.
        confirm_seconds: How long the end of an answer may wait for its span.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        recorder: Recorder,
        session: aiohttp.ClientSession,
        *,
        token: str | None,
        nonce: str,
        confirm_seconds: float,
    ) -> None:
        self.upstreams = upstreams
        self.recorder = recorder
        self.stopping = False
        self._session = session
        self._token = token.encode() if token is not None else None
        self._nonce = nonce
        self._confirm_seconds = confirm_seconds

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        try:
            path = request.rel_url.raw_path
            if path == "/health":
                return plain(
                    {"nonce": self._nonce, "waiting": self.recorder.waiting, "lost": self.recorder.lost}
                )
            self._admit(request)
            target = read_path(path)
            if target is None:
                raise Refusal(
                    404, f"there is no {path!r}; paths are [/rollout/ID/attempt/ID]/v1/chat/completions …"
                )
            if request.method == "GET" and target.path.partition("/")[0] == "models":
                return self._models(target)
            if request.method != "POST" or not (target.path in APIS or target.path == _COUNTING):
                raise Refusal(
                    404,
                    f"{request.method} {target.path!r} is not passed on; what is: {', '.join(APIS)}, models",
                )
            return await self._pass(request, target)
        except Refusal as refusal:
            return refusal.response()
        except _ClientGone:
            # It reaches nobody.
            return web.Response(status=499)

    def _admit(self, request: web.BaseRequest) -> None:
        if self.stopping:
            raise Refusal(503, "the proxy is stopping")
        if self._token is None:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get(
            "x-api-key", ""
        )
        if not hmac.compare_digest(given.strip().encode(), self._token):
            raise Refusal(401, "the proxy wants its token as the API key")

    def _models(self, target: Target) -> web.Response:
        models = list_models(self.upstreams.names)
        name = target.path.partition("/")[2]
        if not name:
            return plain(models)
        for model in models["data"]:
            if model["id"] == name:
                return plain(model)
        raise Refusal(404, self._unknown(name))

    def _unknown(self, model: object) -> str:
        return (
            f"no upstream serves a model {model!r}; served are: {', '.join(self.upstreams.names) or 'none'}"
        )

    async def _pass(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_UP
        }
        headers["Accept-Encoding"] = "identity"
        body = await _read_body(request)
        call = None
        api = APIS.get(target.path)
        if api is not None and target.rollout_id is not None and target.attempt_id is not None:
            call = Call(target.rollout_id, target.attempt_id, api, body, request.headers.get("traceparent"))
        passing = _Passing(target.path, {}, body, headers, call)
        try:
            return await self._answer(request, passing)
        except Refusal as refusal:
            if call is not None:
                call.status = refusal.status
                call.failed(refusal.kind, refusal.message)
                call.take(refusal.body())
                await self._record(call)
            raise
        except (asyncio.CancelledError, _ClientGone):
            if call is not None:
                self._give_up(call)
            raise

    def _give_up(self, call: Call) -> None:
        """Record a call that nobody waits for any more, unless it is recorded."""
        if call.recorded:
            return
        if self.stopping:
            call.failed("proxy_stopped", "the proxy was stopped before the answer was complete")
        else:
            call.disconnected = True
            if call.first_byte is None:
                call.failed("client_disconnected", "the client went away before there was an answer")
        self.recorder.put(call.end())

    async def _answer(self, request: web.BaseRequest, passing: _Passing) -> web.StreamResponse:
        passing.request = _read_json(passing.body)
        if passing.call is not None:
            passing.call.request = passing.request
        answering = await self._find_answer(passing)
        response = answering.response
        try:
            if response.content_type == _EVENTS and response.status < 400:
                return await self._stream(request, passing, answering)
            return await self._whole(passing, answering)
        finally:
            if response.connection is not None:
                # The answer was not read to its end: without a connection, the upstream stops its work.
                response.close()
            answering.backend.release()

    # Asking upstreams

    async def _find_answer(self, passing: _Passing) -> _Answering:
        """Ask one upstream after the other until one answers, at least with an error.

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
            backend = await self.upstreams.acquire(model, failed)
            if backend is None:
                raise refusal or Refusal(404, self._unknown(model))
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
                refusal = _unreachable(backend, error)
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
        return any(each is not backend and each not in failed for each in self.upstreams.find(model))

    async def _ask(self, backend: Backend, passing: _Passing) -> _Answering:
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
        return _Answering(backend, engine, wishes, response)

    async def _send(
        self, backend: Backend, passing: _Passing, changes: Mapping[str, Any]
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

    # Answering

    async def _whole(self, passing: _Passing, answering: _Answering) -> web.Response:
        response, call = answering.response, passing.call
        try:
            body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            answering.backend.rest()
            raise _unreachable(answering.backend, error) from error
        if call is not None:
            call.answered()
            answer = call.take(body)
            if response.status >= 400:
                call.failed(
                    str(response.status), f"the upstream answers {response.status}: {_told(answer, body)}"
                )
            else:
                if call.api.kind == "EMBEDDING":
                    # Of the vectors, nothing can be learned that would be worth their size.
                    answer = {key: value for key, value in answer.items() if key != "data"}
                    call.take_changed(answer)
                else:
                    call.streamed = answering.wishes.whole
                    gathered = dict(answer)
                    if gather(answering.engine, gathered):
                        call.take_changed(gathered)
            # The span reads the answer, so it is made before anything is hidden.
            await self._record(call)
            if answering.wishes.changes and response.status < 400:
                hidden = hide(answer, answering.wishes)
                if answering.wishes.whole:
                    return _cut(answer, passing.request, response)
                if hidden:
                    body = write_json(answer)
        return web.Response(body=body, status=response.status, headers=_passed_down(response))

    async def _stream(
        self, request: web.BaseRequest, passing: _Passing, answering: _Answering
    ) -> web.StreamResponse:
        upstream, call = answering.response, passing.call
        response = web.StreamResponse(status=upstream.status, headers=_passed_down(upstream))
        await _prepare(response, request)
        try:
            if call is None:
                async for data in upstream.content.iter_any():
                    await _write(response, data)
            else:
                await self._relay(response, call, answering)
            await _write_eof(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            if call is not None:
                kind = "timeout" if isinstance(error, TimeoutError) else "upstream_disconnected"
                call.failed(kind, f"the upstream broke off its stream: {_words(error)}")
                await self._record(call)
            answering.backend.rest()
            # The client is to see that the answer is not whole, as it would without the proxy.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _relay(self, response: web.StreamResponse, call: Call, answering: _Answering) -> None:
        """Pass a stream on, and hold its end back until it is recorded."""
        relay = Relay(call.api.path, answering.engine, answering.wishes)
        call.streamed = True
        call.assemble = relay.answer
        async for data in answering.response.content.iter_any():
            call.answered()
            ready = relay.feed(data)
            if ready:
                await _write(response, ready)
            if relay.held:
                await self._end_stream(response, call, relay)
        relay.finish()
        await self._end_stream(response, call, relay)

    async def _end_stream(self, response: web.StreamResponse, call: Call, relay: Relay) -> None:
        if relay.error is not None:
            call.failed("upstream_error", f"the upstream says within its stream: {relay.error}")
        await self._record(call)
        if relay.held:
            held, relay.held = relay.held, b""
            await _write(response, held)

    # Recording

    async def _record(self, call: Call) -> None:
        """Record a call, unless it is, and wait a moment for that."""
        if not call.recorded:
            stored = self.recorder.put(call.end())
            if self._confirm_seconds and not stored.done():
                late = asyncio.get_running_loop().call_later(self._confirm_seconds, _wait_no_longer, stored)
                try:
                    await stored
                finally:
                    late.cancel()


def _cut(answer: dict[str, Any], request: dict[str, Any], response: aiohttp.ClientResponse) -> web.Response:
    options = request.get("stream_options")
    usage = isinstance(options, dict) and bool(cast("dict[str, Any]", options).get("include_usage"))
    headers = {
        name: value for name, value in _passed_down(response).items() if name.lower() != "content-type"
    }
    headers["Content-Type"] = _EVENTS
    return web.Response(body=as_stream(answer, usage=usage), status=response.status, headers=headers)


def _wait_no_longer(stored: asyncio.Future[bool]) -> None:
    if not stored.done():
        stored.set_result(False)


async def _read_body(request: web.BaseRequest) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Refusal(413, "the request is larger than max_body_mb of the proxy") from error


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        value = read_json(body)
    except ValueError as error:
        raise Refusal(400, f"the request is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(400, "the request is no JSON object")
    return cast("dict[str, Any]", value)


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


def _passed_down(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.lower() not in _NOT_PASSED_DOWN}


def _retriable(status: int) -> bool:
    return status == 429 or status >= 500


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(REST_SECONDS, float(headers.get("Retry-After", "")))
    except ValueError:
        return REST_SECONDS


def _unreachable(backend: Backend, error: Exception) -> Refusal:
    if isinstance(error, TimeoutError):
        return Refusal(
            504, f"the upstream {backend.settings.base_url} does not answer in time: {_words(error)}"
        )
    return Refusal(502, f"the upstream {backend.settings.base_url} cannot be reached: {_words(error)}")


def _is_stale(error: Exception) -> bool:
    """Whether an idle connection was closed by the upstream just as it was used again."""
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) and not isinstance(
        error, aiohttp.ClientConnectorError
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _told(answer: dict[str, Any], body: bytes) -> str:
    """Return what an error answer says."""
    error = answer.get("error", answer)
    message = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else body[:200].decode(errors="replace")


async def _prepare(response: web.StreamResponse, request: web.BaseRequest) -> None:
    try:
        await response.prepare(request)
    except ConnectionError as error:
        raise _ClientGone from error


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        await response.write(data)
    except ConnectionError as error:
        raise _ClientGone from error


async def _write_eof(response: web.StreamResponse) -> None:
    try:
        await response.write_eof()
    except ConnectionError as error:
        raise _ClientGone from error
