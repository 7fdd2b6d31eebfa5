"""Asking a server what it has, from synchronous code."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from lightning_core.errors import StoreError, StoreUnavailableError

from .peer import Peer, Unanswered
from .wire import API_PATH

__all__ = ["describe_store"]


def describe_store(peer: Peer, retry_seconds: float) -> bool:
    """Ask whether the server's store is durable.

    Raises:
        StoreUnavailableError: If there is no answer for so many seconds, or a stranger's.
    """
    give_up = time.monotonic() + retry_seconds
    pause = 0.05
    while True:
        try:
            return bool(_ask(peer)["durable"])
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, StoreError) and not isinstance(error, Unanswered):
                raise
            if time.monotonic() + pause > give_up:
                raise StoreUnavailableError(
                    f"the server at {peer.url} could not be reached for {retry_seconds:g} s: {error}"
                ) from error
        threading.Event().wait(random.uniform(0, pause))
        pause = min(2 * pause, 2.0)


def _ask(peer: Peer) -> dict[str, Any]:
    parts = urlsplit(peer.url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(
            "GET", f"{API_PATH}/store", headers=peer.headers() | {"Accept-Encoding": "identity"}
        )
        response = connection.getresponse()
        body = response.read()
        headers: Message = response.headers
        peer.learn({key.lower(): value for key, value in headers.items()})
        peer.check(response.status, headers.get_content_type(), body)
        return json.loads(body)
    finally:
        connection.close()
