"""Python's garbage collector during a run."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["rare_collections"]

NEW_OBJECTS = 10_000
"""How many objects there must be more than at the last collection for the next one."""


@contextmanager
def rare_collections() -> Generator[None]:
    """Have the garbage collector look through new objects less often than it does by default, for a while.

    A run has thousands of spans and rollouts in flight, none of them garbage, and with a collection for every few
    hundred new objects the collector takes a fifth to a third of the processor time. It changes nothing where
    the threshold was raised already, or the collector was switched off.
    """
    before = gc.get_threshold()
    if not gc.isenabled() or before[0] == 0 or before[0] >= NEW_OBJECTS:
        yield
        return
    during = (NEW_OBJECTS, *before[1:])
    gc.set_threshold(*during)
    try:
        yield
    finally:
        # Somebody else's choice since then stays.
        if gc.get_threshold() == during:
            gc.set_threshold(*before)
