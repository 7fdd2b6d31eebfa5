"""Resuming a run: which one, whether it may be, and what the end of its process has left undone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_core.algorithm.base import BaseAlgorithm
from lightning_core.errors import ConfigurationError, FinalRolloutError, ResumeError
from lightning_core.runner.identity import pid_namespace
from lightning_core.store.base import LightningStore
from lightning_core.trainer.keys import initial_resources_id, own_resources
from lightning_core.trainer.owner import is_gone, is_held
from lightning_core.types import (
    LLM,
    NamedResources,
    ProxyLLM,
    RolloutConfig,
    RolloutStatus,
    RolloutV2,
    Run,
    Worker,
)

__all__ = [
    "RESUME_VARIABLE",
    "algorithm_name",
    "choose_run",
    "clear_up",
    "unfinished_run",
    "wanted_run",
    "with_endpoints",
]

logger = logging.getLogger(__name__)

RESUME_VARIABLE = "LIGHTNING_CORE_RESUME"

_UNFINISHED: tuple[RolloutStatus, ...] = ("queuing", "requeuing", "preparing", "running")
_PAGE = 500

# A script that fits twice would otherwise resume its first run and then try to resume another one.
_variable_used = False


def wanted_run(resume: bool | str | None) -> bool | str:
    """Return which run to resume: its id, ``True`` for the newest, ``"auto"`` for the newest if any, or ``False``.

    ``None`` asks the variable ``LIGHTNING_CORE_RESUME``, which holds for the first run of a process.

    Raises:
        ConfigurationError: If ``resume`` is something else.
    """
    global _variable_used
    if resume is None:
        value = "" if _variable_used else os.environ.get(RESUME_VARIABLE, "").strip()
        _variable_used = True
        if value.lower() in ("", "0", "false"):
            return False
        return True if value.lower() in ("1", "true") else value
    if not isinstance(resume, bool | str) or resume == "":  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
        raise ConfigurationError(f"resume must be True, 'auto' or the id of a run, not {resume!r}")
    return resume


def algorithm_name(algorithm: BaseAlgorithm) -> str:
    """Return by what a run knows its algorithm again: the name of its class, or of its function."""
    return getattr(algorithm, "__qualname__", None) or type(algorithm).__qualname__


def unfinished_run(runs: Sequence[Run], algorithm: str) -> str | Literal[False]:
    """Return the id of the algorithm's newest run if that has not succeeded.

    Args:
        runs: All runs of the store, oldest first.
        algorithm: Name of the algorithm.
    """
    newest = next((run for run in reversed(runs) if _begun_by(run) == algorithm), None)
    return newest.run_id if newest is not None and newest.status != "succeeded" else False


def choose_run(runs: Sequence[Run], wanted: bool | str, algorithm: str, store: str) -> Run:
    """Return the run to resume.

    Args:
        runs: All runs of the store, oldest first.
        wanted: The id of one, or ``True`` for the newest that has not succeeded.
        algorithm: Name of the algorithm.
        store: What to call the store in errors.

    Raises:
        ResumeError: If there is none, it has succeeded, another process is at work on it, or another algorithm has
            begun it.
    """
    left = [run for run in runs if run.status != "succeeded"]
    if wanted is True:
        if not left:
            newest = f"; the newest, {runs[-1].run_id}, has succeeded" if runs else ""
            raise ResumeError(f"there is no run to resume in {store}{newest}. Leave resume out to begin one")
        run = left[-1]
    else:
        found = [run for run in runs if run.run_id == wanted]
        if not found:
            known = ", ".join(run.run_id for run in left[-5:]) or "none"
            raise ResumeError(f"there is no run {wanted!r} in {store}; runs that can be resumed: {known}")
        run = found[0]
        if run.status == "succeeded":
            raise ResumeError(f"run {run.run_id} has succeeded, so there is nothing to resume")
    others = [other.run_id for other in left if _begun_by(other) == algorithm and not is_held(other)]
    hint = f"; to resume another one, give its id: resume={others[-1]!r}" if others else ""
    if is_held(run) and run.owner is not None:
        raise ResumeError(
            f"run {run.run_id} is not over: process {run.owner.pid} on {run.owner.host} is at work on it{hint}"
        )
    if _begun_by(run) != algorithm:
        raise ResumeError(
            f"run {run.run_id} was begun by the algorithm {_begun_by(run)}, and this is {algorithm}{hint}"
        )
    return run


def _begun_by(run: Run) -> str:
    return str(run.settings.get("algorithm_class") or run.settings.get("algorithm"))


async def clear_up(
    store: LightningStore, run: Run, saved: Mapping[str, Any], resources: NamedResources | None
) -> str | None:
    """Prepare what a run has left undone for those who take it up again.

    Rollouts whose worker is gone go back to the queue; those with a worker elsewhere wait for their lease. Model
    endpoints in resources that are still needed become those of today.

    Args:
        store: The store.
        run: The run.
        saved: The state of the run.
        resources: The resources that the run starts from today.

    Returns:
        Resources that are to be the run's latest again, or ``None`` for those that it starts from.
    """
    initial = initial_resources_id(run.run_id)
    at_checkpoint, at_end = saved.get("resources_id"), saved.get("latest_resources_id")
    workers = {worker.worker_id: worker for worker in await store.query_workers()}
    needed: set[str | None] = {at_checkpoint, at_end}
    taken = 0
    for rollout in await _unfinished(store, run.run_id):
        needed.add(rollout.resources_id)
        try:
            if rollout.status in ("preparing", "running"):
                attempt = await store.get_latest_attempt(rollout.rollout_id)
                gone = attempt is not None and _is_gone(workers.get(attempt.worker_id or ""))
                # The attempt under way is not the agent's to answer for, so it does not count.
                config = _with_one_more(rollout.config, "max_attempts" if gone else "max_losses")
                await store.update_rollout(rollout.rollout_id, config=config)
                if gone:
                    await store.update_rollout(rollout.rollout_id, status="requeuing")
                    taken += 1
            if rollout.resources_id is None and at_end not in (None, initial):
                # It would have run with these, and not with what is the latest while the algorithm starts again.
                await store.update_rollout(rollout.rollout_id, resources_id=at_end)
        except FinalRolloutError:
            continue
    for resources_id in needed - {None, initial}:
        if resources_id is not None and own_resources(run.run_id, resources_id):
            await _refresh(store, resources_id, resources or {})
    logger.info("run %s goes on; %d rollouts whose worker is gone are queued again", run.run_id, taken)
    return None if at_checkpoint == initial else at_checkpoint


async def _unfinished(store: LightningStore, run_id: str) -> list[RolloutV2]:
    found: list[RolloutV2] = []
    while page := await store.query_rollouts(
        run_id=run_id, status=_UNFINISHED, limit=_PAGE, offset=len(found)
    ):
        found += page
    return found


def _with_one_more(config: RolloutConfig, what: Literal["max_attempts", "max_losses"]) -> RolloutConfig:
    return config.model_copy(update={what: getattr(config, what) + 1})


def _is_gone(worker: Worker | None) -> bool:
    """Whether the worker's process was on this machine and is there no more."""
    if worker is None:
        return False
    stats = worker.heartbeat_stats
    here = (socket.gethostname(), pid_namespace())
    pid = stats.get("pid")
    return (stats.get("host"), stats.get("pid_namespace")) == here and isinstance(pid, int) and is_gone(pid)


async def _refresh(store: LightningStore, resources_id: str, today: NamedResources) -> None:
    """Put today's endpoints into resources of the store."""
    update = await store.get_resources_by_id(resources_id)
    if update is None:
        return
    resources = with_endpoints(update.resources, today)
    if resources != update.resources:
        await store.update_resources(resources_id, resources)


def with_endpoints(resources: NamedResources, today: NamedResources) -> NamedResources:
    """Return resources whose models are where those of the same names are today: a server's address changes.

    They are behind an LLM proxy if those of today are. What an algorithm has put there under a name of its own is where
    the proxy is today.

    Args:
        resources: What is as it was.
        today: The resources that the run starts from now.
    """
    proxied = [resource for resource in today.values() if isinstance(resource, ProxyLLM)]
    only_proxy = proxied[0] if len({each.get_base_url() for each in proxied}) == 1 else None
    renewed = dict(resources)
    for name, resource in resources.items():
        current = today.get(name, only_proxy if isinstance(resource, ProxyLLM) else None)
        if isinstance(resource, LLM) and isinstance(current, LLM):
            place = {"endpoint": current.get_base_url(), "api_key": current.api_key}
            if isinstance(current, ProxyLLM) is isinstance(resource, ProxyLLM):
                renewed[name] = resource.model_copy(update=place)
            else:
                own = {"model": resource.model, "sampling_parameters": resource.sampling_parameters}
                renewed[name] = current.model_copy(update=own)
    return renewed
