"""OpenTelemetry's protocol: taking traces from any SDK into a store, and sending stored spans on."""

from .forwarder import Forwarder
from .ingestion import MAX_BODY_BYTES, routes
from .names import (
    ATTEMPT_HEADER,
    ATTEMPT_ID,
    EXTRA,
    ROLLOUT_HEADER,
    ROLLOUT_ID,
    SEQUENCE_ID,
    TRACES_PATH,
)
from .wrapper import forwarding

__all__ = [
    "ATTEMPT_HEADER",
    "ATTEMPT_ID",
    "EXTRA",
    "MAX_BODY_BYTES",
    "ROLLOUT_HEADER",
    "ROLLOUT_ID",
    "SEQUENCE_ID",
    "TRACES_PATH",
    "Forwarder",
    "forwarding",
    "routes",
]
