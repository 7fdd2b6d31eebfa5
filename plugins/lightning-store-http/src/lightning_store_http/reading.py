"""From what comes over the network to the data models, without validating what the server has validated."""

from __future__ import annotations

from typing import Any, Final

from lightning_core.types import Attempt, AttemptedRollout, RolloutConfig, RolloutV2

__all__ = ["read_attempt", "read_attempted", "read_rollout"]

_CONFIG: Final = frozenset(RolloutConfig.model_fields)
_ATTEMPT: Final = frozenset(Attempt.model_fields)
_ROLLOUT: Final = frozenset(RolloutV2.model_fields)
_ATTEMPTED: Final = frozenset(AttemptedRollout.model_fields)


def read_attempt(values: dict[str, Any]) -> Attempt:
    """Read an attempt."""
    if values.keys() != _ATTEMPT:
        # From a server of another version.
        return Attempt.model_validate(values)
    return Attempt.trusted(values)


def read_rollout(values: dict[str, Any]) -> RolloutV2:
    """Read a rollout."""
    if values.keys() == _ATTEMPTED:
        del values["attempt"]
    if values.keys() != _ROLLOUT or values["config"].keys() != _CONFIG:
        return RolloutV2.model_validate(values)
    values["config"] = RolloutConfig.trusted(values["config"])
    return RolloutV2.trusted(values)


def read_attempted(values: dict[str, Any]) -> AttemptedRollout:
    """Read a rollout with its attempt."""
    if values.keys() != _ATTEMPTED or values["config"].keys() != _CONFIG:
        return AttemptedRollout.model_validate(values)
    values["config"] = RolloutConfig.trusted(values["config"])
    values["attempt"] = read_attempt(values["attempt"])
    return AttemptedRollout.trusted(values)
