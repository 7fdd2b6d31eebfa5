"""The names by which OTLP traces say which rollout they belong to."""

from __future__ import annotations

__all__ = [
    "ATTEMPT_HEADER",
    "ATTEMPT_ID",
    "EXTRA",
    "ROLLOUT_HEADER",
    "ROLLOUT_ID",
    "SEQUENCE_ID",
    "TRACES_PATH",
]

TRACES_PATH = "/v1/traces"
"""Where OTLP/HTTP takes traces."""

ROLLOUT_ID = "lightning.rollout_id"
"""Attribute of a resource or a span: the rollout."""
ATTEMPT_ID = "lightning.attempt_id"
"""Attribute of a resource or a span: the attempt, or ``latest``, which is also what its absence means."""
SEQUENCE_ID = "lightning.sequence_id"
"""Attribute of a span: its place among the spans of the attempt; without it the store draws the next one."""
EXTRA = "lightning.extra"
"""Attribute of a forwarded span: a JSON object of those fields of the stored span that OTLP has no place for."""

ROLLOUT_HEADER = "x-lightning-rollout-id"
"""Request header: the rollout of the spans that name none."""
ATTEMPT_HEADER = "x-lightning-attempt-id"
"""Request header: their attempt."""
