"""The server as an ASGI application: it lets in who may come, and answers errors plainly."""

from __future__ import annotations

import asyncio
import gzip
import hmac
from typing import TYPE_CHECKING, Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from lightning_core.store.base import LightningStore

from .batch import answer_batch
from .bodies import IN_THREAD, Disconnected, header
from .failures import RequestError, describe, status_of
from .rest import rest_routes
from .service import Limits, Service
from .wire import API_PATH, BATCH_PATH, EXPECT_HEADER, JSON, NONCE_HEADER, OVER_HEADER, pack_json

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from .otlp import Forwarder

__all__ = ["StoreApp", "create_app"]

_HEALTH: Final = f"{API_PATH}/health"
_COMPRESS_FROM: Final = 1024
_FINISH_SECONDS: Final = 5.0


def create_app(
    store: LightningStore,
    *,
    token: str | None = None,
    nonce: str | None = None,
    limits: Limits | None = None,
    forward_to: str | None = None,
) -> StoreApp:
    """Make the ASGI application that serves a store.

    Args:
        store: What to serve. It is not closed.
        token: What clients must show; ``None`` lets in everybody, so keep it for tests.
        nonce: Tells this store from others; by default that of the store.
        limits: What is taken and granted.
        forward_to: An OTLP endpoint that gets a copy of every span, such as ``http://127.0.0.1:4318``.
    """
    forwarder = None
    if forward_to is not None:
        from .otlp import Forwarder, forwarding

        forwarder = Forwarder(forward_to)
        store = forwarding(store, forwarder)
    return StoreApp(Service(store, nonce, token, limits or Limits()), forwarder)


class StoreApp:
    """The ASGI application of one service.

    Args:
        service: What it serves.
        forwarder: Started and stopped along with the application.
    """

    def __init__(self, service: Service, forwarder: Forwarder | None = None) -> None:
        from .otlp import routes

        self.service = service
        self._forwarder = forwarder
        self._token = service.token.encode() if service.token is not None else None
        self._router = Router(
            [
                Route(_HEALTH, self._health, methods=["GET"]),
                Route(f"{API_PATH}/store", self._describe, methods=["GET"]),
                Route(f"{API_PATH}/openapi.json", self._document, methods=["GET"]),
                Route(BATCH_PATH, self._batch, methods=["POST"]),
                *rest_routes(service),
                *routes(service.store, max_body_bytes=service.limits.max_body_bytes),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        await self.service.identify()
        answer = _Answer(self.service, scope, send)
        try:
            self._admit(scope)
            if scope["path"] == BATCH_PATH and scope["method"] == "POST":
                content_type, body, _ = await answer_batch(self.service, scope, receive)
                await answer.send_body(200, content_type, body)
            else:
                # It makes the router raise a 404 or 405 instead of answering it in its own way.
                await self._router({**scope, "app": self}, receive, answer)
        except Disconnected:
            return
        except asyncio.CancelledError:
            if not self.service.stopping:
                raise
            # It took too long for a server that stops; its client finds the connection closed.
        except HTTPException as error:
            refusal = RequestError(error.status_code, error.detail, headers=dict(error.headers or {}))
            await answer.send_error(refusal)
        except Exception as error:
            await answer.send_error(error)

    async def _live(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "lifespan.startup":
            if self._forwarder is not None:
                self._forwarder.start()
            await send({"type": "lifespan.startup.complete"})
        # Also what has lost its connection is carried to its end.
        await self.service.answers.finish(_FINISH_SECONDS)
        if self._forwarder is not None:
            await asyncio.to_thread(self._forwarder.stop)
        await send({"type": f"{message['type']}.complete"})

    def _admit(self, scope: Scope) -> None:
        expected = header(scope, EXPECT_HEADER.encode())
        if expected is not None and not hmac.compare_digest(expected.encode(), self.service.nonce.encode()):
            raise RequestError(
                421,
                "this is another store than the one that the request is for",
                kind="StoreUnavailableError",
            )
        if scope["path"] == _HEALTH:
            return
        if self._token is not None:
            scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                raise RequestError(
                    401,
                    "a valid token is needed",
                    kind="Unauthorized",
                    headers={"www-authenticate": "Bearer"},
                )
        if self.service.stopping:
            raise RequestError(503, "the server is stopping", kind="StoreUnavailableError")

    async def _health(self, request: Request) -> Response:
        from . import __version__

        return _json({"nonce": self.service.nonce, "version": __version__})

    async def _describe(self, request: Request) -> Response:
        from . import __version__

        store = self.service.store
        return _json(
            {
                "nonce": self.service.nonce,
                "version": __version__,
                "durable": store.capabilities.durable,
            }
        )

    async def _document(self, request: Request) -> Response:
        from . import __version__
        from .openapi import openapi_document

        return _json(openapi_document(__version__))

    async def _batch(self, request: Request) -> Response:
        # Answered before it comes here; the route makes other methods a 405.
        raise HTTPException(404)


class _Answer:
    """Adds the server's headers to an answer, and compresses it where the client asks for that."""

    def __init__(self, service: Service, scope: Scope, send: Send) -> None:
        self._send = send
        self._service = service
        self._compress = "gzip" in (header(scope, b"accept-encoding") or "")
        self._start: Message = {}
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Take a part of an answer; nothing is sent before the answer is complete."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            await self._send_all(self._start["status"], list(self._start["headers"]), b"".join(self._parts))

    async def send_body(
        self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """Send a whole answer."""
        given = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        await self._send_all(status, [(key.encode(), value.encode()) for key, value in given.items()], body)

    async def _send_all(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if self._compress and len(body) >= _COMPRESS_FROM:
            if len(body) < IN_THREAD:
                body = gzip.compress(body, 1)
            else:
                body = await asyncio.to_thread(gzip.compress, body, 1)
            headers = [item for item in headers if item[0] != b"content-length"]
            headers += [(b"content-encoding", b"gzip"), (b"content-length", str(len(body)).encode())]
        headers.append((NONCE_HEADER.encode(), self._service.nonce.encode()))
        if self._service.over:
            headers.append((OVER_HEADER.encode(), b"1"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def send_error(self, error: Exception) -> None:
        """Answer with an error."""
        headers = error.headers if isinstance(error, RequestError) else {}
        await self.send_body(status_of(error), JSON, pack_json({"error": describe(error)}), headers)


def _json(value: Any) -> Response:
    return Response(pack_json(value), media_type=JSON)
