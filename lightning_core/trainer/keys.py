"""How a run names what it creates, so that a replay of the same algorithm finds it again.

A name is made of the run, of the step (how many checkpoints there were before), of the content, and of a number that
tells equal contents of one step apart, in the order in which they were asked for. An algorithm that runs again from
its last checkpoint asks for the same things, and so by the same names.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from hashlib import sha256
from typing import Any

from lightning_core.store.base import EnqueueRequest
from lightning_core.types import NamedResources, ResourcesUpdate

__all__ = ["RunKeys", "initial_resources_id", "own_resources", "successor"]

# 80 bits: two contents of a million share a hash once in 10**12 runs.
_DIGITS = 20
# What changes when a model server starts again is no part of what a resource is.
_VOLATILE = ("endpoint", "api_key")


class RunKeys:
    """Names the rollouts and resources of a run. May be used from several threads.

    Args:
        run_id: The run.
        step: How many checkpoints the run has.
    """

    def __init__(self, run_id: str, step: int = 0) -> None:
        self.run_id = run_id
        self.step = step
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def rollout(self, request: EnqueueRequest) -> str | None:
        """Return the key for a request that has none; ``None`` if it holds what no durable store can keep."""
        digest = _digest([request.input, request.mode, request.resources_id, request.config.__dict__])
        return digest and f"{self.run_id}/{self._numbered(digest, '/')}"

    def own(self, key: str) -> str:
        """Return the key for a request that has one, so that those of two runs never meet."""
        return f"{self.run_id}/own/{key}"

    def resources(self, resources: NamedResources) -> str:
        """Return the id for new resources. It can stand in a URL as it is.

        Raises:
            pydantic.ValidationError: If something is no resource.
        """
        update = ResourcesUpdate(resources_id="", resources=resources)
        content: dict[str, dict[str, Any]] = update.model_dump(mode="json")["resources"]
        plain = {
            name: {key: value for key, value in resource.items() if key not in _VOLATILE}
            for name, resource in content.items()
        }
        digest = _digest(plain) or _digest(repr(plain)) or ""
        return f"rs-{self.run_id}-{self._numbered(digest, '-')}"

    def next_step(self) -> None:
        """A checkpoint was stored: names begin anew."""
        with self._lock:
            self.step += 1
            self._seen.clear()

    def _numbered(self, digest: str, separator: str) -> str:
        with self._lock:
            number = self._seen[separator + digest]
            self._seen[separator + digest] += 1
            return separator.join((str(self.step), digest, str(number)))


def successor(key: str) -> str:
    """Return the key under which a request is made again whose rollout a crash has ended."""
    run, slash, rest = key.partition("/")
    run, _, times = run.partition("~")
    return f"{run}~{int(times or 0) + 1}{slash}{rest}"


def initial_resources_id(run_id: str) -> str:
    """Return the id of the resources that a run starts from."""
    return f"rs-{run_id}-initial"


def own_resources(run_id: str, resources_id: str) -> bool:
    """Whether a run made these resources under an id of its own."""
    return resources_id.startswith(f"rs-{run_id}-")


def _digest(content: Any) -> str | None:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return sha256(text.encode()).hexdigest()[:_DIGITS]
