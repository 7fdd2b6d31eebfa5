"""Registers a hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_core.plugin import Component, hookimpl


def make_hook() -> Any:
    from lightning_core import Hook

    class Wrong(Hook):
        async def on_rollout_end(self, *, agent: Any, runner: Any, rolout: Any, spans: Any) -> None:
            pass

    return Wrong()


@hookimpl
def lightning_hooks() -> Iterable[Component[Any]]:
    return [Component("wrong", make_hook, summary="A hook.", api_version=1)]
