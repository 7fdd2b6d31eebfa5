"""Passes answers back, whole or as they stream, and records them on the way."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import aiohttp
from aiohttp import web

from .calls import Call, without_keys
from .cutting import as_stream
from .engines import gather, hide
from .forwarding import Answering, Passing, unreachable, words
from .jsons import write_json
from .recorder import Recorder
from .relay import Relay

__all__ = ["Answerer", "ClientGone"]

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
_EVENTS: Final = "text/event-stream"


class ClientGone(Exception):
    """The client has closed its connection."""


class Answerer:
    """Answers clients with what upstreams answer. Belongs to one event loop.

    Args:
        recorder: Where spans go.
        confirm_seconds: How long the end of an answer may wait for its span.
    """

    def __init__(self, recorder: Recorder, confirm_seconds: float) -> None:
        self._recorder = recorder
        self._confirm_seconds = confirm_seconds

    async def answer(
        self, request: web.BaseRequest, passing: Passing, answering: Answering
    ) -> web.StreamResponse:
        """Pass an answer back, in the form in which it comes.

        Raises:
            Refusal: If a whole answer breaks off.
            ClientGone: If the client does not wait for the end.
        """
        response = answering.response
        if response.content_type == _EVENTS and response.status < 400:
            return await self._stream(request, passing, answering)
        return await self._whole(passing, answering)

    async def record(self, call: Call) -> None:
        """Record a call, unless it is, and wait a moment for that."""
        if not call.recorded:
            stored = self._recorder.put(call.end())
            if self._confirm_seconds and not stored.done():
                late = asyncio.get_running_loop().call_later(self._confirm_seconds, _wait_no_longer, stored)
                try:
                    await stored
                finally:
                    late.cancel()

    # An answer in one piece

    async def _whole(self, passing: Passing, answering: Answering) -> web.Response:
        response, call = answering.response, passing.call
        try:
            body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            answering.backend.rest()
            raise unreachable(answering.backend, error) from error
        if response.status >= 400:
            body = without_keys(body, answering.backend.secrets)
        if call is not None:
            call.answered()
            answer = call.take(body)
            if response.status >= 400:
                call.failed(
                    str(response.status), f"the upstream answers {response.status}: {_told(answer, body)}"
                )
            else:
                _prepare_record(call, answer, answering)
            # The span reads the answer, so it is made before anything is hidden.
            await self.record(call)
            if answering.wishes.changes and response.status < 400:
                hidden = hide(answer, answering.wishes)
                if answering.wishes.whole:
                    return _cut(answer, passing.request, response)
                if hidden:
                    body = write_json(answer)
        return web.Response(body=body, status=response.status, headers=_passed_down(response))

    # A stream

    async def _stream(
        self, request: web.BaseRequest, passing: Passing, answering: Answering
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
                call.failed(kind, f"the upstream broke off its stream: {words(error)}")
                await self.record(call)
            answering.backend.rest()
            # The client is to see that the answer is not whole, as it would without the proxy.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _relay(self, response: web.StreamResponse, call: Call, answering: Answering) -> None:
        """Pass a stream on, and hold its end back until it is recorded."""
        relay = Relay(call.api.path, answering.engine, answering.wishes, answering.backend.secrets)
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
        await self.record(call)
        if relay.held:
            held, relay.held = relay.held, b""
            await _write(response, held)


def _prepare_record(call: Call, answer: dict[str, Any], answering: Answering) -> None:
    """Bring an answer into the form in which it is recorded."""
    if call.api.kind == "EMBEDDING":
        # Of the vectors, nothing can be learned that would be worth their size.
        call.take_changed({key: value for key, value in answer.items() if key != "data"})
        return
    call.streamed = answering.wishes.whole
    gathered = dict(answer)
    if gather(answering.engine, gathered):
        call.take_changed(gathered)


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


def _passed_down(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.lower() not in _NOT_PASSED_DOWN}


def _told(answer: dict[str, Any], body: bytes) -> str:
    """Return what an error answer says."""
    error = answer.get("error", answer)
    message = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else body[:200].decode(errors="replace")


async def _prepare(response: web.StreamResponse, request: web.BaseRequest) -> None:
    try:
        await response.prepare(request)
    except ConnectionError as error:
        raise ClientGone from error


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        await response.write(data)
    except ConnectionError as error:
        raise ClientGone from error


async def _write_eof(response: web.StreamResponse) -> None:
    try:
        await response.write_eof()
    except ConnectionError as error:
        raise ClientGone from error
