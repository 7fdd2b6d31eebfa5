"""The real exporters of OpenTelemetry for Node report to a store, configured by environment variables alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning_store_http.otlp import routes
from starlette.applications import Starlette

from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import TraceStatus

PACKAGES = (
    "@opentelemetry/api@1.9.1",
    "@opentelemetry/exporter-trace-otlp-http@0.223.1",
    "@opentelemetry/exporter-trace-otlp-proto@0.223.1",
    "@opentelemetry/resources@2.12.0",
    "@opentelemetry/sdk-trace-node@2.12.0",
)
SCRIPT = Path(__file__).parent / "node" / "send.cjs"
CACHE = Path(__file__).parents[4] / ".nox" / "otlp-node-packages"
INSTALL_SECONDS = 90


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the packages, installed when it is first needed and kept for the next time."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not installed, so OpenTelemetry's exporters for Node cannot be tested")
    # Other versions are another folder.
    folder = CACHE / f"{zlib.crc32(' '.join(PACKAGES).encode()):08x}"
    if not folder.exists():
        install(npm, folder)
    return folder / "node_modules"


def install(npm: str, folder: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    quiet = ("--no-package-lock", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts")
    work = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        result = subprocess.run(
            [npm, "install", *quiet, "--fetch-retries=1", "--prefix", str(work), *PACKAGES],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if result.returncode:
            pytest.skip(f"npm could not install OpenTelemetry for Node: {result.stderr[-300:].strip()}")
        # Renamed when it is complete, so that nobody finds half of it; somebody else may have been faster.
        with contextlib.suppress(OSError):
            work.rename(folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not install OpenTelemetry for Node within {INSTALL_SECONDS} s")
    finally:
        shutil.rmtree(work, ignore_errors=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["json", "protobuf"])
async def test_node_reports_to_a_store(
    protocol: str,
    compression: str,
    node_modules: Path,
    store: InMemoryLightningStore,
    rollout: tuple[str, str],
    serve: Callable[[Any], Any],
) -> None:
    with serve(Starlette(routes=routes(store))) as url:
        environment = {
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(node_modules),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_RESOURCE_ATTRIBUTES": f"service.name=js-agent,lightning.rollout_id={rollout[0]}",
        }
        result = await asyncio.to_thread(
            subprocess.run,
            ["node", str(SCRIPT), protocol],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    child, root = await store.query_spans(*rollout)
    ids = json.loads(result.stdout)
    assert [(span.trace_id, span.span_id) for span in (child, root)] == [
        (span["traceId"], span["spanId"]) for span in ids
    ]
    assert (child.name, child.parent_id, child.sequence_id) == ("child", root.span_id, 1)
    assert (root.name, root.parent_id, root.sequence_id) == ("root", None, 2)
    assert root.attributes == {"text": "é", "number": 3, "float": 0.5, "flag": True}
    assert child.attributes.pop("half") in ("\\ud83d", "\ufffd")
    assert child.attributes == {"list": ["a", "b"], "numbers": [1, 2]}
    assert child.status == TraceStatus(status_code="ERROR", description="it broke")
    assert [(event.name, event.attributes) for event in child.events] == [("token", {"index": 1})]
    assert [(link.context.span_id, link.attributes) for link in child.links] == [
        (root.span_id, {"why": "test"})
    ]
    assert child.resource.attributes["service.name"] == "js-agent"
    extra = child.__pydantic_extra__ or {}
    assert (extra["kind"], extra["instrumentation_scope"]["name"]) == ("CLIENT", "client")
    assert root.end_time == pytest.approx(child.end_time, abs=10)
