"""What the tests share: a model server in a process of its own, and a global tracer provider for one test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning_tracer_otel import OtelTracer
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """The base URL of a server that answers with what it was asked; see model_server.py."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("model_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.stdin.close()
            server.wait(timeout=30)


@pytest.fixture
def make_tracer() -> Iterator[Callable[..., OtelTracer]]:
    """Makes tracers, and tears them down in the end."""
    made: list[OtelTracer] = []

    def make(**settings: Any) -> OtelTracer:
        made.append(OtelTracer(**settings))
        return made[-1]

    yield make
    for tracer in made:
        tracer.teardown()


@pytest.fixture
def set_global(monkeypatch: pytest.MonkeyPatch) -> Callable[[TracerProvider], None]:
    """Sets the global provider, which OpenTelemetry allows once per process, for one test."""
    monkeypatch.setattr(trace_api, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace_api, "_TRACER_PROVIDER_SET_ONCE", Once())
    return trace_api.set_tracer_provider
