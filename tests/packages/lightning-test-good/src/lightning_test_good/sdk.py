"""Stands for the heavy package that a plugin needs: it must be imported on use only."""

from __future__ import annotations

from typing import Any

from lightning_core import Hook
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.dummy import DummyTracer


class GoodTracer(DummyTracer):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings


class GoodStore(InMemoryLightningStore):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place


class GoodHook(Hook):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_rollout_end(self, *, rollout: Any, **others: Any) -> None:
        self.seen.append(rollout.rollout_id)
