"""The algorithm that has v0.1 clients run each task once and says how it went."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lightning_core import FastAlgorithm
from lightning_core.errors import ConfigurationError
from lightning_core.types import Dataset, Rollout, RolloutMode

from .client import AgentLightningClient
from .server import AgentLightningServer

__all__ = ["LegacyAlgorithm"]

logger = logging.getLogger(__name__)

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class LegacyAlgorithm(FastAlgorithm):
    """Has v0.1 clients run each task once with the initial resources, and logs the rewards.

    It serves its trainer's store at ``http://host:port``. ``Trainer.fit`` starts ``n_runners`` workers for it; others
    may join from elsewhere, whatever they were written with.

    Args:
        host: The interface of the server. Any other than the loopback needs a token.
        port: The port of the server.
        task_timeout_seconds: How long a client may have a task before it is handed out again, in seconds.
        max_requeues: How often that happens to a task, before it is given up.
        token: What clients must show; ``None`` takes it from ``LIGHTNING_CORE_LEGACY_TOKEN``, if it is there.
        poll_interval: How long the workers of ``Trainer.fit`` wait before they ask again, in seconds.

    Raises:
        ConfigurationError: If ``host`` is another interface than the loopback and there is no token, or a number is out
            of range.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        task_timeout_seconds: float = 300.0,
        max_requeues: int = 5,
        token: str | None = None,
        poll_interval: float = 1.0,
    ) -> None:
        if port == 0:
            raise ConfigurationError("port=0: clients have to know the port; give the number of one")
        self._settings: dict[str, Any] = {
            "task_timeout_seconds": task_timeout_seconds,
            "max_requeues": max_requeues,
            "token": token,
        }
        self._host, self._port = host, port
        self._token = token
        self._poll_interval = poll_interval
        # Made here once, so that a wrong setting is found before anything starts.
        AgentLightningServer(host, port, **self._settings)

    def get_client(self) -> AgentLightningClient:
        """Return a client of the server that :meth:`run` starts."""
        host = _EVERYWHERE.get(self._host, self._host)
        endpoint = f"http://{f'[{host}]' if ':' in host else host}:{self._port}"
        return AgentLightningClient(endpoint, self._poll_interval, token=self._token)

    async def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Queue every task, and log what became of it.

        Raises:
            ConfigurationError: If there are no tasks.
            LegacyServerError: If the port is taken, or the interface does not exist.
        """
        if train_dataset is None and val_dataset is None:
            raise ConfigurationError("there are no tasks: give fit a training or a validation set")
        server = AgentLightningServer(self._host, self._port, store=self.get_store(), **self._settings)
        resources_id = await server.update_resources(self.get_initial_resources() or {})
        await server.start()
        try:
            if train_dataset is not None:
                await self._run_all(server, train_dataset, "train", resources_id)
            if val_dataset is not None:
                await self._run_all(server, val_dataset, "val", resources_id)
        finally:
            await server.stop()

    async def _run_all(
        self, server: AgentLightningServer, dataset: Dataset[Any], mode: RolloutMode, resources_id: str
    ) -> None:
        ids = [await server.queue_task(dataset[index], mode, resources_id) for index in range(len(dataset))]
        results = await asyncio.gather(*(server.poll_completed_rollout(rollout_id) for rollout_id in ids))
        self._log(mode, [result for result in results if result is not None])

    def _log(self, mode: RolloutMode, results: Sequence[Rollout]) -> None:
        rewards = [result.final_reward for result in results if result.final_reward is not None]
        abandoned = sum(result.metadata.get("status") == "abandoned" for result in results)
        mean = fmean(rewards) if rewards else None
        logger.info(
            "%s: %d rollouts, %d of them given up; %d rewards, mean %s",
            mode,
            len(results),
            abandoned,
            len(rewards),
            "unknown" if mean is None else f"{mean:.4g}",
        )
        if results and not rewards:
            logger.warning(
                "no client reported a reward: their logs say more, and so do the results' metadata"
            )
        self.log_metrics(
            mode=mode, rollouts=len(results), abandoned=abandoned, rewards=len(rewards), mean_reward=mean
        )
