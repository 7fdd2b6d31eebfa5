"""The algorithm that changes nothing: it runs each task once and says how it went."""

from __future__ import annotations

import logging
from collections import Counter
from statistics import fmean
from typing import Any

from lightning_core.adapter.advice import NO_REWARD
from lightning_core.algorithm.base import FastAlgorithm
from lightning_core.emitter import find_final_reward
from lightning_core.errors import ConfigurationError
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import Dataset, RolloutConfig, RolloutMode, RolloutV2

__all__ = ["Baseline", "MockAlgorithm"]

logger = logging.getLogger(__name__)


class Baseline(FastAlgorithm):
    """Runs each task with the initial resources, and logs statuses, spans and rewards.

    Rewards of rollouts that did not succeed do not count. What it measures is the baseline for every other algorithm.
    It also shows in minutes whether agent, tracer and reward work.

    Args:
        n_epochs: How often to run each task of the training set. The validation set is run once, at the end.
        max_attempts: How often each rollout may be tried.
        timeout_seconds: Time limit of an attempt, in seconds; ``None`` for no limit.
    """

    def __init__(
        self, *, n_epochs: int = 1, max_attempts: int = 1, timeout_seconds: float | None = None
    ) -> None:
        if n_epochs < 1:
            raise ConfigurationError(f"n_epochs must be at least 1, not {n_epochs}")
        self.n_epochs = n_epochs
        self.config = RolloutConfig(max_attempts=max_attempts, timeout_seconds=timeout_seconds)
        self._done: list[list[Any]] = []

    async def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Run every task and log what became of it."""
        if train_dataset is None and val_dataset is None:
            raise ConfigurationError("the baseline needs tasks: give fit a training or a validation set")
        if train_dataset is not None:
            for epoch in range(self.n_epochs):
                await self._run_all(train_dataset, "train", epoch)
        if val_dataset is not None:
            await self._run_all(val_dataset, "val", self.n_epochs - 1)

    def reset(self) -> None:
        """Forget what was done."""
        super().reset()
        self._done = []

    def state_dict(self) -> dict[str, Any]:
        """Return which passes over the datasets are done, each as mode and epoch."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Skip the passes that are done."""
        self._done = state["done"]

    async def _run_all(self, dataset: Dataset[Any], mode: RolloutMode, epoch: int) -> None:
        if [mode, epoch] in self._done:
            return
        store = self.get_store()
        requests = [
            EnqueueRequest(input=dataset[index], mode=mode, config=self.config)
            for index in range(len(dataset))
        ]
        rollouts = await store.enqueue_rollouts(requests)
        names = [rollout.rollout_id for rollout in rollouts]
        done = await store.wait_for_rollouts(rollout_ids=names)
        rewards: list[float] = []
        spans = uncounted = 0
        for rollout in done:
            found, reward = await self._report(rollout)
            spans += found
            if reward is not None and rollout.status == "succeeded":
                rewards.append(reward)
            elif reward is not None:
                uncounted += 1
        statuses = Counter(rollout.status for rollout in done)
        logger.info(
            "%s epoch %d: %s; %d spans; %d rewards, mean %s",
            mode,
            epoch,
            ", ".join(f"{number} {status}" for status, number in sorted(statuses.items())),
            spans,
            len(rewards),
            f"{fmean(rewards):.4g}" if rewards else "unknown",
        )
        if uncounted:
            logger.warning(
                "%d rollouts that did not succeed gave a reward before they ended; it does not count",
                uncounted,
            )
        if done and not statuses["succeeded"]:
            logger.warning("no rollout succeeded, so there is nothing to learn from: the reasons are above")
        elif done and not rewards:
            logger.warning("no rollout gave a reward, so there is nothing to learn from: %s", NO_REWARD)
        self.log_metrics(
            mode=mode,
            epoch=epoch,
            rollouts=len(done),
            **{str(status): number for status, number in statuses.items()},
            spans=spans,
            rewards=len(rewards),
            mean_reward=fmean(rewards) if rewards else None,
        )
        self._done.append([mode, epoch])
        await self.checkpoint()

    async def _report(self, rollout: RolloutV2) -> tuple[int, float | None]:
        spans = await self.get_store().query_spans(rollout.rollout_id, "latest")
        reward = find_final_reward(spans)
        attempt = await self.get_store().get_latest_attempt(rollout.rollout_id)
        error = attempt.metadata.get("error") if attempt is not None else None
        logger.info(
            "rollout %s %s: %d spans, reward %s%s",
            rollout.rollout_id,
            rollout.status,
            len(spans),
            reward,
            f", {error}" if error else "",
        )
        return len(spans), reward


MockAlgorithm = Baseline
"""The baseline under the name that Agent Lightning's API gives it."""
