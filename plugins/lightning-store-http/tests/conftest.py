"""What the tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest


@pytest.fixture
def until():
    """Waits for something that another thread brings about, and that nobody tells of."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    return wait
