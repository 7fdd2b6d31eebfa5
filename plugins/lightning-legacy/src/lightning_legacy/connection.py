"""One request to a v0.1 server, and what to make of what comes back, or of what does not."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from typing import Any, Final, NamedTuple

import aiohttp
from pydantic_core import from_json
from yarl import URL

from .endpoint import read_endpoint
from .errors import LegacyServerError
from .protocol import TOKEN_VARIABLE, check_token
from .sessions import shared_session

__all__ = ["Answer", "Backoff", "Connection", "Trouble", "pause"]

_TRY_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_SHOWN: Final = 120


class Trouble(Exception):
    """There was no answer, or one that says that it is worth asking again."""


class Answer(NamedTuple):
    """What a server said: the HTTP status, and the JSON value of the body along with the body itself."""

    status: int
    value: Any
    body: bytes

    @property
    def message(self) -> str:
        """What it says in words, if it is an error."""
        said = self.value.get("message") or self.value.get("detail") if self.is_object else None
        return str(said) if said else _shown(self.body)

    @property
    def is_object(self) -> bool:
        """Whether the value is a JSON object."""
        return isinstance(self.value, dict)


class Backoff:
    """Pauses that grow, and differ between clients that lost their server together.

    Args:
        patience: How long it is worth to try again, in seconds; ``None`` for as long as it takes.
    """

    def __init__(self, patience: float | None) -> None:
        self._give_up = None if patience is None else time.monotonic() + patience
        self._pause = _FIRST_PAUSE

    def next(self) -> float | None:
        """Return how long to wait before the next try, in seconds; ``None`` if it is time to give up."""
        pause = random.uniform(0.5, 1.0) * self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._give_up is not None and time.monotonic() + pause > self._give_up:
            return None
        return pause


class Connection:
    """The way to one server. Its methods run on the bridge's loop.

    Args:
        endpoint: The server's root URL.
        timeout: How long an answer may take, in seconds.
        token: The server's token; ``None`` takes it from ``LIGHTNING_CORE_LEGACY_TOKEN``, if it is there.

    Raises:
        ConfigurationError: If the endpoint is no URL of a server, or no header can carry the token.
    """

    def __init__(self, endpoint: str, timeout: float, token: str | None) -> None:
        self.endpoint = read_endpoint(endpoint)
        self.timeout = timeout
        self._token = token or os.environ.get(TOKEN_VARIABLE) or None
        check_token(self._token)
        self._reached = False

    async def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one request, once.

        Returns:
            The answer, which may be that the request is refused (a status from 400 on).

        Raises:
            Trouble: If it is worth trying again.
            LegacyServerError: If it is not: nothing of that name, or no v0.1 server there.
        """
        sent = dict(headers or {})
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            async with shared_session().request(
                method,
                URL(f"{self.endpoint}{path}", encoded=True),
                data=body,
                headers=sent,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.timeout),
            ) as response:
                content = await response.read()
                status, location = response.status, response.headers.get("Location", "elsewhere")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._judge(error) from error
        self._reached = True
        return self._read(status, location, content, f"{method} {path}")

    def _judge(self, error: Exception) -> Exception:
        """Tell what may pass by itself from what never will."""
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            passing = isinstance(error.os_error, socket.gaierror) and error.os_error.errno == socket.EAI_AGAIN
            if not self._reached and not passing:
                return LegacyServerError(
                    f"there is no host of the name in the endpoint {self.endpoint}: {error.os_error}. "
                    "Check its spelling, and that this machine can resolve it"
                )
        elif isinstance(error, aiohttp.ClientSSLError):
            return LegacyServerError(
                f"no encrypted connection to {self.endpoint}: {error}. Is it https:// that is spoken there, "
                "with a certificate that this machine trusts?"
            )
        elif isinstance(error, aiohttp.ClientResponseError):
            return LegacyServerError(
                f"what answers at {self.endpoint} does not speak HTTP ({error.message}): "
                "check the port, and whether it is https://"
            )
        elif isinstance(error, aiohttp.InvalidURL):
            return LegacyServerError(f"the endpoint {self.endpoint} cannot be asked: {error}")
        if isinstance(error, TimeoutError):
            return Trouble(f"no answer within {self.timeout:g} s")
        return Trouble(str(error) or type(error).__name__)

    def _read(self, status: int, location: str, body: bytes, asked: str) -> Answer:
        if status in _TRY_AGAIN:
            raise Trouble(f"it answered {status}: {_shown(body)}")
        if status in (401, 403):
            given = "does not accept the token" if self._token is not None else "wants a token"
            raise LegacyServerError(
                f"the server at {self.endpoint} {given}: give it as token=… or in the variable {TOKEN_VARIABLE}"
            )
        if 300 <= status < 400:
            raise LegacyServerError(f"{self.endpoint} leads on to {location}: use that as the endpoint")
        try:
            value = from_json(body)
        except ValueError:
            raise self.stranger(asked, f"with status {status} and {_shown(body)}") from None
        return Answer(status, value, body)

    def stranger(self, asked: str, answered: str) -> LegacyServerError:
        """Make the error for an answer that no v0.1 server gives."""
        return LegacyServerError(
            f"what answers at {self.endpoint} is no v0.1 server: it answered {asked} {answered}. "
            "Check host, port and path of the endpoint"
        )


async def pause(seconds: float, wake: asyncio.Event) -> None:
    """Wait so long, or until somebody says to go on."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return


def _shown(body: bytes) -> str:
    text = " ".join(body[:2000].decode("utf-8", "replace").split())
    if not text:
        return "an empty body"
    kind = "a web page" if text.startswith("<") else "this"
    return f"{kind}: {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}"
