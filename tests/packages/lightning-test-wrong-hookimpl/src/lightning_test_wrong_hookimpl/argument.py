"""Registers a tracer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_core.plugin import Component, hookimpl


def make_tracer() -> Any:
    from lightning_core.tracer.dummy import DummyTracer

    return DummyTracer()


@hookimpl
def lightning_tracers(config: Any) -> Iterable[Component[Any]]:
    return [Component("argument", make_tracer, summary="A tracer.", api_version=1)]
