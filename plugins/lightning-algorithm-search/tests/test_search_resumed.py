"""A search that goes on from one of its checkpoints comes to the same end."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from lightning_algorithm_search import SearchAlgorithm

from lightning_core import InMemoryLightningStore
from lightning_core.errors import ConfigurationError
from lightning_core.types import LLM, Span, SpanNames

TEMPLATES = {"bad": 0.05, "fair": 0.4, "good": 0.6, "better": 0.7, "best": 0.95}


class Checkpoints(InMemoryLightningStore):
    """Keeps every checkpoint, as JSON whose objects have lost their order."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[str] = []

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.saved.append(json.dumps(state, sort_keys=True))


async def search(
    saved: str | None = None, port: int = 1, **settings: Any
) -> tuple[SearchAlgorithm, Checkpoints]:
    """Run a search to its end, from a checkpoint if one is given; some rollouts fail or give no reward."""
    store = Checkpoints()
    templates = settings.pop("templates", {name: name for name in TEMPLATES})
    algorithm = SearchAlgorithm(templates, report=False, **{"rollouts_per_candidate": 6, **settings})
    algorithm.set_store(store)
    algorithm.set_run_id("run-1")
    algorithm.set_initial_resources({"llm": LLM(endpoint=f"http://127.0.0.1:{port}/v1", model="m")})
    if saved is not None:
        algorithm.restore(json.loads(saved))

    async def work() -> None:
        while True:
            for each in await store.dequeue_rollouts(10, wait=60):
                ids = each.rollout_id, each.attempt.attempt_id
                assert each.resources_id is not None
                update = await store.get_resources_by_id(each.resources_id)
                assert update is not None
                assert update.resources["llm"].endpoint == f"http://127.0.0.1:{port}/v1"  # type: ignore[attr-defined]
                template: str = update.resources["prompt_template"].template  # type: ignore[attr-defined]
                luck = random.Random(f"{template}{each.input}").random()
                if luck > 0.95:
                    await store.update_attempt(*ids, status="failed", metadata={"error": f"{luck > 0.98}"})
                    continue
                if luck < 0.9:
                    reward = {"reward": float(luck < TEMPLATES[template])}
                    span = Span.from_attributes(
                        rollout_id=ids[0],
                        attempt_id=ids[1],
                        name=SpanNames.REWARD.value,
                        attributes=reward,
                    )
                    await store.add_span(span)
                await store.update_attempt(*ids, status="succeeded")

    worker = asyncio.create_task(work())
    try:
        await asyncio.wait_for(algorithm.run(range(300), range(1000, 1020)), 30)
    finally:
        worker.cancel()
    return algorithm, store


def history(algorithm: SearchAlgorithm) -> list[dict[str, Any]]:
    return [{**entry, "time": 0} for entry in algorithm.metrics_history]


async def test_from_every_checkpoint_it_comes_to_the_same_report():
    whole, store = await search()
    assert len(store.saved) == len([entry for entry in history(whole) if entry["event"] == "rung"]) >= 2
    for number, saved in enumerate(store.saved, start=1):
        resumed, rest = await search(saved, port=2)
        assert history(resumed) == history(whole)
        assert resumed.best_resources is not None
        assert whole.best_resources is not None
        assert resumed.best_resources["prompt_template"] == whole.best_resources["prompt_template"]
        assert len(rest.saved) == len(store.saved) - number
        rungs = {rollout.metadata["search"]["rung"] for rollout in await rest.query_rollouts()}
        assert rungs == {*range(number + 1, len(store.saved) + 1), "final"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"rollouts_per_candidate": 7}, "rollouts_per_candidate was 6 and is 7"),
        ({"without_reward": "exclude"}, "without_reward was 'zero' and is 'exclude'"),
        ({"templates": ["a", "b"]}, "compares bad, fair, good, better, best, and not prompt 1, prompt 2"),
    ],
)
async def test_another_search_is_refused(settings: dict[str, Any], message: str):
    _, store = await search()
    with pytest.raises(ConfigurationError, match=message):
        await search(store.saved[0], **settings)


async def test_a_second_run_of_the_same_object_begins_anew():
    algorithm, _ = await search()
    assert algorithm.state_dict() != {}
    algorithm.reset()
    assert algorithm.state_dict() == {}
