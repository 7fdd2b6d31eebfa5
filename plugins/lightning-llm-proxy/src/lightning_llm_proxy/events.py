"""Server-sent events: cuts a stream of bytes into whole events, wherever the bytes are split."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["EventSplitter", "read_event"]

# Two ends of lines. Atomic, since "\r\n" must not count as two.
_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINES: Final = re.compile(rb"\r\n|\n|\r")
_DATA: Final = b"data: "


class EventSplitter:
    """Collects bytes until events are complete."""

    __slots__ = ("_rest", "_searched")

    def __init__(self) -> None:
        self._rest = b""
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take further bytes; gives the events that are complete now, as they came, with their ends."""
        buffer = self._rest + data if self._rest else data
        events: list[bytes] = []
        begin = 0
        # An end may have come in part before.
        for found in _END.finditer(buffer, max(0, self._searched - 3)):
            end = found.end()
            events.append(buffer[begin:end])
            begin = end
        self._rest = buffer[begin:]
        self._searched = len(self._rest)
        return events

    def rest(self) -> bytes:
        """Give what has come after the last complete event, and forget it."""
        rest, self._rest, self._searched = self._rest, b"", 0
        return rest


def read_event(event: bytes) -> tuple[str | None, bytes | None]:
    """Read an event.

    Returns:
        Its type, if it names one, and its data, or ``None`` if it has none, like a comment.
    """
    text = event.strip(b"\r\n")
    if text.startswith(_DATA) and b"\n" not in text and b"\r" not in text:
        return None, text[len(_DATA) :]
    kind: str | None = None
    data: list[bytes] = []
    for line in _LINES.split(text):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            kind = value.strip().decode(errors="replace")
    return kind, b"\n".join(data) if data else None
