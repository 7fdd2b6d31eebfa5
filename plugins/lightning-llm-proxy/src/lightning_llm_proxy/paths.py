"""What the path of a request says: whose call it is, and which API it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

__all__ = ["APIS", "Api", "Target", "read_path"]


@dataclass(frozen=True, slots=True)
class Api:
    """One API that the proxy passes on.

    Attributes:
        path: Its path after ``/v1``.
        operation: What OpenTelemetry's conventions call it.
        kind: The kind of span, in the terms of OpenInference.
    """

    path: str
    operation: str
    kind: str = "LLM"


APIS: Final = {
    api.path: api
    for api in (
        Api("chat/completions", "chat"),
        Api("completions", "text_completion"),
        Api("responses", "chat"),
        Api("messages", "chat"),
        Api("embeddings", "embeddings", "EMBEDDING"),
    )
}
"""The recorded APIs."""

# Clients add their own /v1 or not, so it may be there twice.
_PATH: Final = re.compile(r"(?:/rollout/([^/]+)/attempt/([^/]+))?((?:/v1)*)/(?!rollout(?:/|$))(.+?)/?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes.

    Attributes:
        rollout_id: Whose call it is; ``None`` if nobody's.
        attempt_id: The attempt of that rollout.
        path: What comes after ``/v1``.
    """

    rollout_id: str | None
    attempt_id: str | None
    path: str


def read_path(path: str) -> Target | None:
    """Read a raw path; ``None`` if it is none of ours."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    rollout_id, attempt_id, _, rest = found.groups()
    if rollout_id is None:
        return Target(None, None, rest)
    return Target(unquote(rollout_id), unquote(attempt_id), rest)
