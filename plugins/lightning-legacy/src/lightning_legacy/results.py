"""How a task of v0.1 and its result lie in a rollout of a store."""

from __future__ import annotations

from typing import Any, Final

from lightning_core.types import AttemptedRollout, Rollout, RolloutV2, Task

from .protocol import write

__all__ = [
    "REPORT",
    "RETRIEVED",
    "RUN_ID",
    "is_retrieved",
    "make_result",
    "make_task",
    "why_abandoned",
    "write_report",
]

RUN_ID: Final = "legacy"
"""The run that all tasks of v0.1 servers belong to, so that they and others may share a store."""

REPORT: Final = "lightning_legacy.report"
"""Metadata: what the client has reported, as JSON."""
RETRIEVED: Final = "lightning_legacy.retrieved"
"""Metadata: whether the result has been retrieved."""


def make_task(rollout: RolloutV2) -> Task:
    """Return a rollout as the task that clients know."""
    attempt = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
    return Task(
        rollout_id=rollout.rollout_id,
        input=rollout.input,
        mode=rollout.mode,
        resources_id=rollout.resources_id,
        create_time=rollout.start_time,
        last_claim_time=attempt.start_time if attempt is not None else None,
        num_claims=attempt.sequence_id if attempt is not None else None,
        metadata={key: value for key, value in rollout.metadata.items() if key not in (REPORT, RETRIEVED)},
    )


def write_report(rollout: Rollout) -> dict[str, Any]:
    """Return the metadata that keep a report."""
    # As text: what is in it is nobody's business but the client's and that of who retrieves it.
    return {REPORT: write(rollout).decode()}


def is_retrieved(rollout: RolloutV2) -> bool:
    """Whether somebody has got the result."""
    return bool(rollout.metadata.get(RETRIEVED))


def make_result(rollout: RolloutV2, claims: int) -> Rollout:
    """Return the result of a task that is final: what was reported, or why nothing was.

    Args:
        rollout: The task.
        claims: How often it was handed out.
    """
    report = rollout.metadata.get(REPORT)
    if rollout.status == "succeeded" and report is not None:
        return Rollout.model_validate_json(report)
    return Rollout(
        rollout_id=rollout.rollout_id,
        task=make_task(rollout).replace(num_claims=claims),
        metadata={"status": "abandoned", "reason": why_abandoned(rollout, claims)},
    )


def why_abandoned(rollout: RolloutV2, claims: int) -> str:
    """Say why a task has no report and will have none."""
    if rollout.status == "failed":
        times = "once" if claims == 1 else f"{claims} times"
        return (
            f"it was handed out {times}, and no client reported within {rollout.config.unresponsive_seconds:g} s: "
            "the clients are stuck or gone, or the task takes longer than task_timeout_seconds"
        )
    return f"it was ended in the store ({rollout.status})"
