"""How an attempt ended, and what of it is kept in the attempt's metadata."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field
from typing import Any

from lightning_core.errors import LightningError, NoResourcesError, RolloutTimeoutError
from lightning_core.types import AttemptStatus, FailureReason

__all__ = ["Ending", "agent_ending", "describe"]

_TRACEBACK_CHARACTERS = 4000


@dataclass
class Ending:
    """How an attempt ended; ``reason`` is set unless it succeeded."""

    status: AttemptStatus = "succeeded"
    reason: FailureReason | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    error: BaseException | None = None

    @classmethod
    def failed(cls, reason: FailureReason, error: BaseException, status: AttemptStatus = "failed") -> Ending:
        """An ending with a reason, and the error that shows it."""
        metadata: dict[str, Any] = {"error": describe(error)}
        if reason == "agent_error":
            text = "".join(traceback.format_exception(error))
            metadata["traceback"] = text[-_TRACEBACK_CHARACTERS:]
        return cls(status, reason, metadata, error)

    @classmethod
    def cancelled(cls, why: str, error: BaseException) -> Ending:
        """An ending that somebody asked for."""
        return cls("cancelled", "cancelled", {"error": why}, error)


def agent_ending(error: BaseException) -> Ending:
    """How an attempt ends in which the agent raised ``error``."""
    if isinstance(error, asyncio.CancelledError):
        return Ending.cancelled(describe(error), error)
    if isinstance(error, RolloutTimeoutError):
        return Ending.failed("timeout", error, "timeout")
    if isinstance(error, NoResourcesError):
        return Ending.failed("no_resources", error)
    if isinstance(error, Exception | SystemExit):
        # An agent that calls sys.exit() ends its rollout, not the worker.
        return Ending.failed("agent_error", error)
    raise error


def describe(error: BaseException) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, LightningError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
