"""A runner process of the fault campaign: ``python -m tests.faults.work URL TOKEN JOURNAL SKEW NUMBER``.

It runs an agent that writes as many spans as its task says, and keeps a journal of every span that the store has
acknowledged. Its clock is ``SKEW`` seconds ahead.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

_skew = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
_real_time = time.time
# Before anything else takes hold of it.
time.time = lambda: _real_time() + _skew

from lightning_store_http import LightningStoreClient  # noqa: E402

from lightning_core import LLM, rollout  # noqa: E402
from lightning_core.emitter import emit_annotation  # noqa: E402
from lightning_core.runner import AgentRunnerV2  # noqa: E402
from lightning_core.tracer import DummyTracer  # noqa: E402
from lightning_core.types import Span  # noqa: E402


class JournalingClient(LightningStoreClient):
    """Writes down, in a file that survives this process, which spans were acknowledged."""

    journal: Any

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, and then write down their ids in one write."""
        number = await super().add_spans(spans)
        lines = "".join(f"{span.rollout_id} {span.attempt_id} {span.span_id}\n" for span in spans)
        os.write(self.journal, lines.encode())
        return number


class Flaky(RuntimeError):
    """What the agent raises now and then."""


@rollout
async def agent(task: dict[str, Any], llm: LLM) -> float:
    """Write spans, with pauses; fail as often as the task says."""
    source = random.Random()
    for number in range(task["spans"]):
        emit_annotation({"task": task["number"], "number": number, "text": "x" * source.randint(5, 2_000)})
        await asyncio.sleep(source.uniform(0, task["pause"]))
    if source.random() < task["failures"]:
        raise Flaky(f"task {task['number']}")
    return float(task["number"])


async def main() -> None:
    """Run rollouts until the run is over or the parent is gone."""
    url, token, journal, _, number = sys.argv[1:6]
    client = JournalingClient(url, token=token, retry_seconds=120.0)
    client.journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    runner = AgentRunnerV2(DummyTracer(), concurrency=16, poll_interval=1.0, heartbeat_interval=0.5)
    runner.init(agent)
    runner.init_worker(int(number), client)
    print("ready", flush=True)
    try:
        await runner.iter()
    finally:
        runner.teardown_worker(int(number))
        runner.teardown()
        await client.close()


if __name__ == "__main__":
    asyncio.run(main())
