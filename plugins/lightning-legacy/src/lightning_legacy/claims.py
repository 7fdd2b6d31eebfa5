"""Which tasks are with clients, and when each is stale."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

__all__ = ["Claims"]


class Claims:
    """The tasks that clients have, by the time at which they are stale, in seconds since the epoch."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        # An entry whose time is not that of its task any more is out of date.
        self._heap: list[tuple[float, str]] = []

    def __iter__(self) -> Iterator[str]:
        """The ids of the tasks."""
        return iter(self._due)

    def add(self, rollout_id: str, due: float) -> None:
        """A client has taken a task."""
        self._due[rollout_id] = due
        heapq.heappush(self._heap, (due, rollout_id))

    def discard(self, rollout_id: str) -> None:
        """The task is with nobody any more."""
        self._due.pop(rollout_id, None)

    def take_stale(self, now: float) -> list[str]:
        """Return those that are stale, and forget them."""
        stale: list[str] = []
        while (due := self.next_due()) is not None and due <= now:
            rollout_id = heapq.heappop(self._heap)[1]
            del self._due[rollout_id]
            stale.append(rollout_id)
        return stale

    def next_due(self) -> float | None:
        """Return when the next one is stale."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
