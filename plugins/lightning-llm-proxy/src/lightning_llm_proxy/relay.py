"""The way of a stream through the proxy: what the client gets of each event, and the answer that all of them make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from .assembly import assembly_for
from .calls import without_keys
from .engines import Wishes, gather, hide
from .events import EventSplitter, read_event
from .jsons import read_json, write_json
from .settings import EngineName

__all__ = ["Relay"]

_DONE: Final = b"[DONE]"


class Relay:
    """Takes the bytes of a stream of events and gives those that the client is to get.

    Events are passed on whole, as soon as they are. The one that ends the answer, and what follows it, are held back in
    :attr:`held`, so that the client can be told of the end when the answer is recorded.

    Args:
        path: The API, such as ``chat/completions``.
        engine: What serves the stream.
        wishes: What the client did not ask for itself.
        keys: What the client is not to see of an error.
    """

    def __init__(self, path: str, engine: EngineName, wishes: Wishes, keys: Sequence[str] = ()) -> None:
        self.ended = False
        self.held = b""
        self._splitter = EventSplitter()
        self._assembly = assembly_for(path)
        self._engine: EngineName = engine
        self._wishes = wishes
        self._keys = keys

    @property
    def error(self) -> str | None:
        """What the upstream says went wrong, if it says so within the stream."""
        return self._assembly.error

    def feed(self, data: bytes) -> bytes:
        """Take further bytes, and give what may be passed on now."""
        ready: list[bytes] = []
        for event in self._splitter.feed(data):
            passed = self._pass(event)
            if self.ended:
                self.held += passed
            else:
                ready.append(passed)
        return b"".join(ready)

    def finish(self) -> None:
        """Note that the stream is over; what is left of it is held back."""
        rest = self._splitter.rest()
        if rest:
            self.held += self._pass(rest)

    def answer(self) -> dict[str, Any]:
        """Return the answer that has come so far."""
        answer = self._assembly.answer()
        gather(self._engine, answer)
        return answer

    def _pass(self, event: bytes) -> bytes:
        passed = self._read(event)
        return passed if self.error is None else without_keys(passed, self._keys)

    def _read(self, event: bytes) -> bytes:
        kind, data = read_event(event)
        if data is None:
            return event
        if data == _DONE:
            self.ended = True
            return event
        try:
            value = read_json(data)
        except ValueError:
            return event
        if not isinstance(value, dict):
            return event
        chunk = cast("dict[str, Any]", value)
        self._assembly.add(kind, chunk)
        if self._assembly.ended:
            self.ended = True
        if not self._wishes.changes:
            return event
        only_usage = self._wishes.usage and chunk.get("choices") == [] and chunk.get("usage") is not None
        if not hide(chunk, self._wishes):
            return event
        if only_usage:
            return b""
        head = f"event: {kind}\n".encode() if kind is not None else b""
        return head + b"data: " + write_json(chunk) + b"\n\n"
