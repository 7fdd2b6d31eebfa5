"""Recent answers, so that a request that comes again because its answer was lost is not carried out again.

A client numbers its requests from 1, and says with each below which number it has had all answers. So the server keeps
an answer until the client has it, and no longer; and it refuses what has been answered and comes late, as copies that
were held up in the network do. Of answers that it does not keep it remembers that there was one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .failures import RequestError

__all__ = ["Answer", "Answers", "Peer"]

_MOST_PEERS: Final = 10_000
_MOST_BYTES: Final = 64 * 1024 * 1024
_MOST_FORGOTTEN: Final = 100_000
_IDLE_SECONDS: Final = 900.0


class Answer(NamedTuple):
    """An answer as it was sent."""

    content_type: str
    body: bytes
    results: list[Any]


@dataclass
class Peer:
    """One client's requests: those that run, and those whose answers it may not have yet.

    Attributes:
        forgotten: Requests up to this number may have been carried out before the client was forgotten.
        below: The client has had the answers to all requests below this number.
        begun: The highest number of a request that was carried out.
        running: Requests that are being carried out.
        answered: The answers that are kept, oldest first.
        dropped: Requests that were carried out, and whose answers were too much to keep.
        withdrawn: Requests whose answers the client does not want any more.
        size: How much the kept answers are, in bytes.
        seen: When the client was heard of last.
    """

    forgotten: int = 0
    below: int = 1
    begun: int = 0
    running: dict[int, asyncio.Task[Answer]] = field(default_factory=dict[int, "asyncio.Task[Answer]"])
    answered: OrderedDict[int, Answer] = field(default_factory=OrderedDict[int, Answer])
    dropped: set[int] = field(default_factory=set[int])
    withdrawn: set[int] = field(default_factory=set[int])
    size: int = 0
    seen: float = 0.0

    def acknowledge(self, below: int) -> None:
        """Forget the answers to all requests below this number: the client has them."""
        if below <= self.below:
            return
        self.below = below
        for number in [number for number in self.answered if number < below]:
            self.size -= len(self.answered.pop(number).body)
        self.dropped = {number for number in self.dropped if number >= below}
        self.withdrawn = {number for number in self.withdrawn if number >= below}

    def begin(self, number: int, task: asyncio.Task[Answer]) -> None:
        """Note that a request is being carried out."""
        self.running[number] = task
        self.begun = max(self.begun, number)

    def keep(self, number: int, answer: Answer) -> None:
        """Keep an answer until the client has it."""
        if number < self.below:
            return
        self.answered[number] = answer
        self.size += len(answer.body)
        while self.size > _MOST_BYTES and len(self.answered) > 1:
            dropped, old = self.answered.popitem(last=False)
            self.dropped.add(dropped)
            self.size -= len(old.body)

    def check(self, number: int) -> None:
        """Refuse a request that is over.

        Raises:
            RequestError: 409, if the client has had the answer, has withdrawn the request, or can have no answer any
                more.
        """
        if number < self.below or number in self.withdrawn:
            raise RequestError(409, f"request {number} has been answered or withdrawn")
        if number in self.dropped:
            raise RequestError(
                409,
                f"request {number} has been carried out, and is not carried out again; its answer is gone, since more "
                f"than {_MOST_BYTES // 2**20} MiB of answers waited for this client. Look at what is stored, and ask "
                "for less at a time",
            )
        if number <= self.forgotten:
            raise RequestError(
                409,
                f"request {number} may have been carried out, and is not carried out again; its answer is gone, since "
                f"this client was silent for {_IDLE_SECONDS:g} s. Look at what is stored",
            )


class Answers:
    """The recent answers to all clients.

    Args:
        clock: Tells the time, in seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._forgotten: OrderedDict[str, int] = OrderedDict()

    async def finish(self, seconds: float) -> None:
        """Wait until what is being carried out is done, but not longer than so many seconds."""
        running = [task for peer in self._peers.values() for task in peer.running.values()]
        if running:
            await asyncio.wait(running, timeout=seconds)

    def of(self, client: str) -> Peer:
        """Return what there is of a client, and forget those who have been silent for long."""
        now = self._clock()
        peer = self._peers.get(client)
        if peer is None:
            forgotten = self._forgotten.pop(client, 0)
            peer = self._peers[client] = Peer(forgotten=forgotten, begun=forgotten)
        else:
            self._peers.move_to_end(client)
        peer.seen = now
        while True:
            oldest, other = next(iter(self._peers.items()))
            if other.running or (len(self._peers) <= _MOST_PEERS and now - other.seen < _IDLE_SECONDS):
                return peer
            del self._peers[oldest]
            if other.begun:
                self._forgotten[oldest] = other.begun
            if len(self._forgotten) > _MOST_FORGOTTEN:
                self._forgotten.popitem(last=False)
