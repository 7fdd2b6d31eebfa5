"""200 rollouts at once, in one process and in four: each gets its own spans, all of them, in order."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings
from lightning_tracer_otel import OtelTracer

from lightning_core import LLM, AgentRunnerV2, InMemoryLightningStore, Trainer
from lightning_core.bridge import run_sync
from lightning_core.store.base import EnqueueRequest, LightningStore

# Fewer where only the versions of packages are tried.
ROLLOUTS = 2 * settings().max_examples
# More of them may show what happens once in a while.
RUNS = int(os.environ.get("CAPTURE_RUNS", "1"))

# What these take on a machine that is busy with other things is no matter of theirs.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The agents' module, where the processes of a run find it too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import concurrent_agents

    yield concurrent_agents
    concurrent_agents.shared_pool().shutdown()
    del sys.modules["concurrent_agents"]


@pytest.fixture
def llm(endpoint: str) -> LLM:
    return LLM(endpoint=endpoint, model="echo")


def served(llm: LLM) -> int:
    """How many calls the server has answered."""
    with urllib.request.urlopen(f"{llm.endpoint.removesuffix('/v1')}/served") as answer:
        return sum(json.load(answer).values())


def tasks() -> list[dict[str, Any]]:
    # The server holds the first answers back until all rollouts are there.
    return [{"number": number, "together": ROLLOUTS} for number in range(ROLLOUTS)]


async def check(store: LightningStore, agents: ModuleType, answered: int) -> None:
    rollouts = await store.query_rollouts()
    assert [rollout.status for rollout in rollouts] == ["succeeded"] * ROLLOUTS
    ids: list[str | None] = []
    for rollout in rollouts:
        spans = await store.query_spans(rollout.rollout_id)
        assert agents.recorded(spans) == agents.expected(rollout.input["number"])
        assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))
        assert {span.trace_id for span in spans} == {spans[0].trace_id}
        ids += agents.response_ids(spans)
    assert len(set(ids)) == len(ids) == answered == agents.CALLS * ROLLOUTS


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("run", range(RUNS))
async def test_concurrent_rollouts_of_a_process_get_their_own_spans(
    agents: ModuleType, llm: LLM, kind: str, run: int
):
    """Trap 11."""
    store = InMemoryLightningStore()
    await store.add_resources({"llm": llm})
    await store.enqueue_rollouts([EnqueueRequest(input=task) for task in tasks()])
    runner: AgentRunnerV2[Any] = AgentRunnerV2(
        OtelTracer(instrument=["openai"]), max_rollouts=ROLLOUTS, concurrency=ROLLOUTS
    )
    before = served(llm)
    with runner.run_context(agent=getattr(agents, f"{kind}_agent"), store=store):
        await runner.iter()
    await check(store, agents, served(llm) - before)
    await store.close()


@pytest.mark.parametrize("run", range(RUNS))
def test_concurrent_rollouts_of_four_processes_get_their_own_spans(agents: ModuleType, llm: LLM, run: int):
    """Trap 11."""
    pytest.importorskip("lightning_store_http")
    trainer = Trainer(
        algorithm="baseline",
        tracer={"type": "otel", "instrument": ["openai"]},
        strategy={"type": "client-server", "startup_seconds": 900},
        n_runners=4,
        runner={"type": "agent", "concurrency": ROLLOUTS // 4},
        initial_resources={"llm": llm},
        store=InMemoryLightningStore(),
    )
    before = served(llm)
    trainer.fit(agents.sync_agent if run % 2 else agents.async_agent, tasks())
    run_sync(check(trainer.store, agents, served(llm) - before))
