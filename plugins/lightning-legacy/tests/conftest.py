"""Servers to test against: the package's own, and some that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from lightning_legacy import AgentLightningClient, AgentLightningServer

Answer = Callable[[bytes], bytes | Awaitable[bytes | None] | None]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_CORE_LEGACY_TOKEN", raising=False)


@pytest.fixture
async def server() -> AsyncIterator[AgentLightningServer]:
    server = AgentLightningServer(port=0)
    await server.start()
    yield server
    await server.close()


@pytest.fixture
def client(server: AgentLightningServer) -> AgentLightningClient:
    return AgentLightningClient(server.endpoint, poll_interval=0.01)


@pytest.fixture
def durable(tmp_path: Path) -> str:
    pytest.importorskip("lightning_store_sqlite")
    return f"sqlite:///{tmp_path / 'legacy.db'}"


class FakeServer:
    """Answers each request with what a function makes of it; without an answer, it closes the connection."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answer: Answer = lambda request: None
        self.port = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[str]:
        """The first line of each request."""
        return [request.partition(b"\r\n")[0].decode() for request in self.requests]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for handler in self._handlers:
                handler.cancel()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ),
                0,
            )
            request = head + await reader.readexactly(length)
            self.requests.append(request)
            answer = self.answer(request)
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            self._handlers.discard(handler)


def reply(
    body: str | bytes, status: str = "200 OK", content_type: str = "application/json", more: str = ""
) -> bytes:
    """An HTTP answer that ends its connection."""
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}"
    return f"{head}connection: close\r\n\r\n".encode() + body


async def until(condition: Callable[[], object]) -> None:
    """Wait for what cannot be awaited."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    await fake.start()
    yield fake
    await fake.stop()
