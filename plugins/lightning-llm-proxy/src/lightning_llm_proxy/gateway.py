"""Takes requests: who may call, which call of which attempt it is, and what becomes of it."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any, cast
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from .answering import Answerer, ClientGone
from .answers import Refusal, list_models, plain
from .calls import Call
from .forwarding import Forwarder, Passing, passed_up, unknown_model
from .jsons import read_json
from .paths import APIS, Target, read_path
from .recorder import Recorder
from .upstreams import Upstreams

__all__ = ["Gateway"]

_COUNTING = "messages/count_tokens"


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
        self._forwarder = Forwarder(upstreams, session)
        self._answerer = Answerer(recorder, confirm_seconds)
        self._token = token.encode() if token is not None else None
        self._nonce = nonce

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
        except ClientGone:
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
        name = unquote(target.path.partition("/")[2])
        if not name:
            return plain(models)
        for model in models["data"]:
            if model["id"] == name:
                return plain(model)
        raise Refusal(404, unknown_model(name, self.upstreams))

    async def _pass(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        body = await _read_body(request)
        call = None
        api = APIS.get(target.path)
        if api is not None and target.rollout_id is not None and target.attempt_id is not None:
            call = Call(target.rollout_id, target.attempt_id, api, body, request.headers.get("traceparent"))
        passing = Passing(target.path, {}, body, passed_up(request.headers), call)
        try:
            return await self._answer(request, passing)
        except Refusal as refusal:
            if call is not None:
                call.status = refusal.status
                call.failed(refusal.kind, refusal.message)
                call.take(refusal.body())
                await self._answerer.record(call)
            raise
        except (asyncio.CancelledError, ClientGone):
            if call is not None:
                self._give_up(call)
            raise

    async def _answer(self, request: web.BaseRequest, passing: Passing) -> web.StreamResponse:
        passing.request = _read_json(passing.body)
        if passing.call is not None:
            passing.call.request = passing.request
        answering = await self._forwarder.find_answer(passing)
        try:
            return await self._answerer.answer(request, passing, answering)
        finally:
            if answering.response.connection is not None:
                # The answer was not read to its end: without a connection, the upstream stops its work.
                answering.response.close()
            answering.backend.release()

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
