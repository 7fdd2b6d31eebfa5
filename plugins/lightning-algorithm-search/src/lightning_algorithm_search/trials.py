"""Trials: the same tasks for several candidates, put through the store, and what they were worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_core import LightningStore, find_final_reward
from lightning_core.errors import ExecutionError
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import Dataset, RolloutConfig, RolloutMode, RolloutV2

__all__ = ["Record", "run_trials"]

_NO_REWARD = "it gave no reward: return one from the agent, or call emit_reward"


@dataclass
class Record:
    """What became of the rollouts of one candidate.

    Attributes:
        rewards: The reward that counts, by task; without those that count nothing.
        rollouts: How many there were.
        failed: How many failed or were cancelled.
        unrewarded: How many succeeded and gave no reward.
        problems: Why, by message, and how often.
    """

    rewards: dict[int, float] = field(default_factory=dict[int, float])
    rollouts: int = 0
    failed: int = 0
    unrewarded: int = 0
    problems: Counter[str] = field(default_factory=Counter[str])

    @property
    def rewarded(self) -> int:
        """How many rollouts gave a reward of their own."""
        return self.rollouts - self.failed - self.unrewarded


async def run_trials(
    store: LightningStore,
    dataset: Dataset[Any],
    tasks: Sequence[int],
    resources_ids: Mapping[str, str],
    records: Mapping[str, Record],
    *,
    mode: RolloutMode,
    config: RolloutConfig,
    without_reward: Literal["zero", "exclude"],
    label: Mapping[str, Any],
) -> None:
    """Run every task once for every candidate, and add what became of it to the records.

    Rollouts are enqueued task by task, so that a model server that grows slower or warms up treats all alike.

    Args:
        store: Where runners take them from.
        dataset: The tasks.
        tasks: Indices of those to run.
        resources_ids: The resources of each candidate, by its name.
        records: By candidate; changed in place.
        mode: Why they run.
        config: Limits and retries.
        without_reward: What a rollout without a usable reward counts.
        label: Is kept in the metadata of each rollout, with candidate and task.

    Raises:
        ExecutionError: If no rollout at all gave a reward.
    """
    plan = [(task, name) for task in tasks for name in resources_ids]
    requests = [
        EnqueueRequest(
            input=dataset[task],
            mode=mode,
            resources_id=resources_ids[name],
            config=config,
            metadata={"search": {**label, "candidate": name, "task": task}},
        )
        for task, name in plan
    ]
    rollouts = await store.enqueue_rollouts(requests)
    by_id = dict(zip((rollout.rollout_id for rollout in rollouts), plan, strict=True))
    rewarded = 0
    problems: Counter[str] = Counter()
    for rollout in await store.wait_for_rollouts(rollout_ids=list(by_id)):
        task, name = by_id[rollout.rollout_id]
        record = records[name]
        record.rollouts += 1
        problem: str | None = None
        reward: float | None = None
        if rollout.status == "succeeded":
            reward = find_final_reward(await store.query_spans(rollout.rollout_id, "latest"))
            if reward is None:
                record.unrewarded += 1
                problem = _NO_REWARD
        else:
            record.failed += 1
            problem = await _why(store, rollout)
        if problem is not None:
            problems[problem] += 1
            record.problems[problem] += 1
        if reward is not None:
            rewarded += 1
            record.rewards[task] = reward
        elif without_reward == "zero":
            record.rewards[task] = 0.0
    if requests and not rewarded:
        problem, count = problems.most_common(1)[0]
        raise ExecutionError(
            f"search: none of {len(requests)} {mode} rollouts gave a reward, so there is nothing to compare. "
            f"Most often ({count} times): {problem}"
        )


async def _why(store: LightningStore, rollout: RolloutV2) -> str:
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    error = attempt.metadata.get("error") if attempt is not None else None
    return f"it ended {rollout.status}" + (f": {error}" if error else "")
