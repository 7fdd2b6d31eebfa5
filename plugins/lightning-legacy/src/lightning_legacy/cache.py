"""The resources that a client has seen, up to a number."""

from __future__ import annotations

from collections import OrderedDict

from lightning_core.errors import ConfigurationError
from lightning_core.types import ResourcesUpdate

__all__ = ["ResourcesCache"]


class ResourcesCache:
    """Resources by id; those that were not asked for the longest are forgotten first.

    What it gives out are copies, so that an agent that changes its resources changes nobody else's.

    Args:
        size: How many it holds.

    Raises:
        ConfigurationError: If that is less than 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigurationError(
                f"cache_size={size}: a client remembers 1 version of its resources at least"
            )
        self._size = size
        self._items: OrderedDict[str, ResourcesUpdate] = OrderedDict()

    def __len__(self) -> int:
        """How many it holds now."""
        return len(self._items)

    def get(self, resources_id: str) -> ResourcesUpdate | None:
        """Return a copy of the resources of this id, if they are here."""
        known = self._items.get(resources_id)
        if known is None:
            return None
        self._items.move_to_end(resources_id)
        return known.model_copy(deep=True)

    def put(self, update: ResourcesUpdate) -> None:
        """Remember resources."""
        self._items[update.resources_id] = update.model_copy(deep=True)
        self._items.move_to_end(update.resources_id)
        while len(self._items) > self._size:
            self._items.popitem(last=False)
