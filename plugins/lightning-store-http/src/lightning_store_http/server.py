"""``LightningStoreServer``: serves any store over HTTP, from a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
from typing import Final

import uvicorn

from lightning_core.errors import ConfigurationError, ExecutionError, StoreUnavailableError
from lightning_core.serving import StartStop, bind, listening_problem, new_loop
from lightning_core.store.base import LightningStore

from .app import StoreApp, create_app
from .service import Limits

__all__ = ["LightningStoreServer", "check_address"]

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0


def check_address(host: str, port: int, token: str | None) -> None:
    """Check that a server could listen there now.

    Raises:
        ConfigurationError: If the settings are such that :class:`LightningStoreServer` refuses them.
        StoreUnavailableError: If the port is taken or the interface does not exist.
    """
    _check_settings(host, port, token)
    _listen(host, port).close()


class LightningStoreServer(StartStop):
    """Serves a store over HTTP, from a thread with an event loop of its own.

    ::

        with LightningStoreServer(store) as server:
            client = LightningStoreClient(server.url, token=server.token)

    Args:
        store: What to serve. The server does not close it.
        host: The interface to listen on. Any other than the loopback needs a ``token``.
        port: The port; 0 picks a free one.
        token: What clients must show; ``None`` draws one at random.
        nonce: Tells this store from others: a client that has talked to one talks to no other. By default that of
            the data if the store is durable, so that the server may be restarted, else one for this store object.
        max_body_bytes: The largest body of a request, in bytes, before and after decompression.
        max_batch: The most operations in a batch, and the most rollouts or spans in an operation.
        max_wait: The longest that a request may wait for work or an end, in seconds; clients ask again.
        forward_to: An OTLP endpoint that gets a copy of every span, such as ``http://127.0.0.1:4318``.
        stop_seconds: How long :meth:`stop` waits for requests that are being answered, in seconds.

    Raises:
        ConfigurationError: If ``host`` is another interface than the loopback, and there is no ``token``; if no header
            can carry the token; or if the port is none.
    """

    def __init__(
        self,
        store: LightningStore,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        nonce: str | None = None,
        max_body_bytes: int = Limits.max_body_bytes,
        max_batch: int = Limits.max_batch,
        max_wait: float = Limits.max_wait,
        forward_to: str | None = None,
        stop_seconds: float = 10.0,
    ) -> None:
        _check_settings(host, port, token)
        self.store = store
        self.host = host
        self.token = token or secrets.token_urlsafe(24)
        self._port = port
        self._nonce = nonce
        self._limits = Limits(max_body_bytes, max_batch, max_wait)
        self._forward_to = forward_to
        self._stop_seconds = stop_seconds
        self._app: StoreApp | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._over = False
        self._failure: Exception | None = None

    @property
    def port(self) -> int:
        """The port; the one that was picked, once the server has started."""
        return self._port

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def url(self) -> str:
        """Where clients find the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._port}"

    @property
    def nonce(self) -> str:
        """Tells this store from others.

        Raises:
            ExecutionError: If the server has not started yet and was given none.
        """
        if self._app is not None:
            return self._app.service.nonce
        if self._nonce is None:
            raise ExecutionError(
                "the nonce of a store is known once its server has started: call start() first"
            )
        return self._nonce

    def start(self) -> None:
        """Start to serve, and return when the server can be reached.

        Raises:
            StoreUnavailableError: If the port is taken or the interface does not exist.
            ExecutionError: If it has started already, or does not start.
        """
        if self._thread is not None:
            raise ExecutionError(f"the server at {self.url} has started already")
        self._app = create_app(
            self.store, token=self.token, nonce=self._nonce, limits=self._limits, forward_to=self._forward_to
        )
        self._app.service.over = self._over
        listener = _listen(self.host, self._port)
        self._port = listener.getsockname()[1]
        self._failure = None
        ready = threading.Event()
        self._server = _Server(self._app, ready, self._stop_seconds)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener, ready), name="lightning-store-server", daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_SECONDS) or not self._server.started:
            self.stop()
            why = "" if self._failure is None else f": {self._failure}"
            raise ExecutionError(f"the server at {self.url} did not start{why}") from self._failure

    def stop(self) -> None:
        """Answer those who wait, finish what is being answered, and stop."""
        thread, server, app = self._thread, self._server, self._app
        if thread is None or server is None or app is None:
            return
        app.service.drain()
        server.end()
        thread.join(self._stop_seconds + 5)
        if thread.is_alive():
            server.force_exit = True
            thread.join(5)
        self._thread = self._server = None

    def announce_end(self, over: bool = True) -> None:
        """Say with every answer that the run is over, so that runners that wait for work leave at once."""
        self._over = over
        if self._app is not None:
            self._app.service.announce_end(over)

    @property
    def all_aware(self) -> bool:
        """Whether everybody who has asked for work was told since that the run is over."""
        return self._app is None or self._app.service.all_aware

    def see_off(self, seconds: float) -> None:
        """Wait until everybody has left who wants to see how the run has ended, but not longer than that."""
        if self._app is not None:
            self._app.service.unfollowed.wait(seconds)

    def _run(self, server: _Server, listener: socket.socket, ready: threading.Event) -> None:
        uvicorns = logging.getLogger("uvicorn.error")
        quiet = _Quiet(threading.get_ident())
        uvicorns.addFilter(quiet)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._serve(server, listener))
        except Exception as error:
            if not server.started:
                self._failure = error
            else:
                logger.exception("the server at %s ended abnormally", self.url)
        finally:
            uvicorns.removeFilter(quiet)
            listener.close()
            ready.set()

    async def _serve(self, server: _Server, listener: socket.socket) -> None:
        assert self._app is not None
        await self._app.service.identify()
        await server.serve(sockets=[listener])


def _check_settings(host: str, port: int, token: str | None) -> None:
    if problem := listening_problem("a server", host, token):
        raise ConfigurationError(problem)
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"a port is from 0 to 65535, not {port}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        raise StoreUnavailableError(str(error)) from error


class _Quiet(logging.Filter):
    """Keeps what uvicorn says of its life in one thread out of the log, unless somebody has set a level for it."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        if record.levelno >= logging.WARNING or record.thread != self._thread:
            return True
        return any(logging.getLogger(name).level for name in ("uvicorn", "uvicorn.error"))


class _Server(uvicorn.Server):
    """Says when it has started, and waits for its end instead of looking for it ten times a second."""

    def __init__(self, app: StoreApp, ready: threading.Event, stop_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                # Longer than clients keep an idle connection, so that it is they who close it.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=max(1, round(stop_seconds)),
            )
        )
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._ready.set()

    async def main_loop(self) -> None:
        """Serve until the end."""
        await self.on_tick(0)
        if not self.should_exit:
            await self._ended.wait()

    def end(self) -> None:
        """Begin to stop; may be called from any thread."""
        self.should_exit = True
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:
                # It has ended by itself.
                return
