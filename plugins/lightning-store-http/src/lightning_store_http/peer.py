"""What a client knows about its server: where it is, which store it has, and whether the run is over."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from lightning_core.errors import ConfigurationError, StoreError, StoreUnavailableError

from .failures import restore
from .wire import EXPECT_HEADER, NONCE_HEADER, OVER_HEADER, TOKEN_VARIABLE, WireError, unpack

__all__ = ["Peer", "TooLarge", "Unanswered"]

_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})


class Unanswered(StoreUnavailableError):
    """An answer that says that it is worth asking again."""

    retry = True


class TooLarge(ConfigurationError):
    """A request that is more than the server takes."""


class Peer:
    """A client's server.

    Args:
        url: Where it is.
        token: What to show; by default the variable LIGHTNING_CORE_STORE_TOKEN.
        nonce: The server to talk to; by default the first one that answers.
        compress: Whether to ask for compressed answers; by default unless it is on this machine.

    Raises:
        ConfigurationError: If the URL is none, or no header can carry the token.
    """

    def __init__(self, url: str, token: str | None, nonce: str | None, compress: bool | None) -> None:
        parts = urlsplit(url)
        try:
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fits = False
        if not fits or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigurationError(
                f"the URL of a store's server looks like http://host:4747, not like {url!r}"
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                f"give the token of the server at {parts.hostname} as token=… or in the variable {TOKEN_VARIABLE}, "
                "not in the URL, which may be printed"
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.token = token or os.environ.get(TOKEN_VARIABLE) or None
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            # Not shown, and often no more than the end of a line in a file.
            raise ConfigurationError(
                f"the token for the server at {self.url} holds something else than printable ASCII, such as the end of "
                f"a line; look at token=… or the variable {TOKEN_VARIABLE}"
            )
        self.nonce = nonce
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        self.compress = compress if compress is not None else not local
        self.over = False
        self.answered = time.monotonic()
        """When the server answered last, on the monotonic clock."""

    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        headers = {"Accept-Encoding": "gzip" if self.compress else "identity"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.nonce is not None:
            headers[EXPECT_HEADER] = self.nonce
        return headers

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take in what every answer says.

        Raises:
            StoreUnavailableError: If another server answered than before.
        """
        nonce = headers.get(NONCE_HEADER)
        if nonce is None:
            # Something in between has answered, such as a proxy; or it is no server of ours.
            return
        if self.nonce is None:
            self.nonce = nonce
        elif nonce != self.nonce:
            raise self.stranger()
        self.over = OVER_HEADER in headers
        self.answered = time.monotonic()

    def stranger(self) -> StoreUnavailableError:
        """Make the error for an answer by another server."""
        return StoreUnavailableError(
            f"another server answers at {self.url} than the one that this client knows, or it was restarted with a "
            "store in memory, whose data are gone; make a new client if you mean this one"
        )

    def check(self, status: int, content_type: str, body: bytes) -> None:
        """Raise an error unless a request was answered.

        Raises:
            Unanswered: If it is worth asking again.
            LightningError: What the answer says.
        """
        if 200 <= status < 300:
            return
        if status == 421:
            raise self.stranger()
        if status == 401:
            raise StoreUnavailableError(
                f"the server at {self.url} does not accept the token; give it as token=… or in the variable "
                f"{TOKEN_VARIABLE}" if self.token is not None else
                f"the server at {self.url} wants a token; give it as token=… or in the variable {TOKEN_VARIABLE}"
            )  # fmt: skip
        description: Any = None
        try:
            answer: Any = unpack(content_type, body, strict=False)
            description = answer["error"]
        except (WireError, LookupError, TypeError):
            pass
        if status in _TRY_AGAIN:
            raise Unanswered(f"it answered {status}")
        if description is None:
            raise StoreError(
                f"the server at {self.url} answered with status {status}; is it a server of stores?"
            )
        error = restore(description)
        raise TooLarge(str(error)) if status == 413 else error
