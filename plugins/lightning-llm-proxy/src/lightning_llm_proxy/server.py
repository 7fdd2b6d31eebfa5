"""The proxy's server: an event loop in a thread, with the HTTP server, the HTTP client and the writer of spans."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp import web

from lightning_core.serving import new_loop
from lightning_core.store.base import LightningStore

from .gateway import Gateway
from .recorder import Recorder
from .settings import Upstream
from .upstreams import Upstreams

__all__ = ["Server"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Longer than clients keep an idle connection, so that it is they who close it.
_KEEP_ALIVE_SECONDS: Final = 75.0
# Shorter than upstreams do; uvicorn, and so vLLM, closes after 5 seconds.
_UPSTREAM_KEEP_ALIVE_SECONDS: Final = 4.0
_HEADER_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 2**18


class Server:
    """Serves until it is told to stop, in the thread that calls :meth:`run`.

    Args:
        listener: A bound socket.
        upstreams: The upstream models.
        store: Where spans go.
        token: What clients must send as their key.
        nonce: Tells this proxy from others.
        confirm_seconds: How long the end of an answer may wait for its span, in seconds.
        retry_seconds: How long spans are tried again, in seconds.
        max_waiting: The most memory of spans that wait, in bytes.
        max_body: The largest request, in bytes.
        stop_seconds: How long a stop waits for calls, and then for spans, in seconds.

    Attributes:
        ready: Set when it can be reached, or has failed.
        failure: Why it has failed.
    """

    def __init__(
        self,
        listener: socket.socket,
        upstreams: Sequence[Upstream],
        store: LightningStore | None,
        *,
        token: str | None,
        nonce: str,
        confirm_seconds: float,
        retry_seconds: float,
        max_waiting: int,
        max_body: int,
        stop_seconds: float,
    ) -> None:
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self._listener = listener
        self._settings = upstreams
        self._token = token
        self._nonce = nonce
        self._confirm_seconds = confirm_seconds
        self._max_body = max_body
        self._stop_seconds = stop_seconds
        self.recorder = Recorder(store, max_waiting, retry_seconds)
        self._upstreams = Upstreams()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def run(self) -> None:
        """Serve until the end."""
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if self.ready.is_set():
                logger.exception("the LLM proxy ended abnormally")
            self.failure = error
        finally:
            self._loop = None
            self._listener.close()
            self.ready.set()

    def stop(self) -> None:
        """Begin to stop; may be called from any thread."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._stopping.set)
            except RuntimeError:
                # It has ended by itself.
                return

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the server's loop, from another thread."""
        loop = self._loop
        if loop is None:
            coroutine.close()
            raise RuntimeError("the LLM proxy has ended")
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop, and wait for its result."""
        return self.submit(coroutine).result()

    async def replace_upstreams(self, upstreams: Sequence[Upstream]) -> None:
        """Use other upstream models from now on."""
        self._upstreams.replace(upstreams)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._upstreams.replace(self._settings)
        self.recorder.start()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_UPSTREAM_KEEP_ALIVE_SECONDS)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            read_bufsize=_READ_BYTES,
            max_field_size=_HEADER_BYTES,
            max_line_size=_HEADER_BYTES,
            skip_auto_headers=("User-Agent",),
        ) as session:
            gateway = Gateway(
                self._upstreams,
                self.recorder,
                session,
                token=self._token,
                nonce=self._nonce,
                confirm_seconds=self._confirm_seconds,
            )
            await self._listen(gateway)
        await self.recorder.close(self._stop_seconds)

    async def _listen(self, gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        max_body = self._max_body

        def make_request(
            message: Any, payload: Any, protocol: Any, writer: Any, task: Any
        ) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=max_body)

        handlers = web.Server(
            gateway.handle,
            request_factory=make_request,
            # A client that goes away is not to cost the upstream its work.
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        server = await loop.create_server(handlers, sock=self._listener)
        try:
            self.ready.set()
            await self._stopping.wait()
        finally:
            gateway.stopping = True
            server.close()
            handlers.pre_shutdown()
            await handlers.shutdown(self._stop_seconds)
