"""What is known without any installed package: plurals, base classes, defaults, first-party packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lightning_core.plugin.component import Kind

__all__ = ["BASES", "DEFAULTS", "FIRST_PARTY", "PLURALS"]

PLURALS: Final[Mapping[Kind, str]] = {
    "tracer": "tracers",
    "store": "stores",
    "runner": "runners",
    "adapter": "adapters",
    "credit": "credits",
    "algorithm": "algorithms",
    "strategy": "strategies",
    "llm_proxy": "llm_proxies",
    "engine": "engines",
    "hook": "hooks",
}
"""Each kind's plural; ``lightning_<plural>`` is the hook that provides it."""

BASES: Final[Mapping[Kind, tuple[str, str] | None]] = {
    "tracer": ("lightning_core.tracer.base", "BaseTracer"),
    "store": ("lightning_core.store.base", "LightningStore"),
    "runner": ("lightning_core.runner.base", "BaseRunner"),
    "adapter": ("lightning_core.adapter.base", "TraceAdapter"),
    "credit": ("lightning_core.adapter.credit.base", "CreditPolicy"),
    "algorithm": ("lightning_core.algorithm.base", "BaseAlgorithm"),
    "strategy": ("lightning_core.execution.base", "ExecutionStrategy"),
    # There is no base class of proxies: what has `start` and `stop` will do.
    "llm_proxy": None,
    "engine": ("lightning_core.engine.base", "BaseEngine"),
    "hook": ("lightning_core.types", "Hook"),
}
"""Module and name of the class that every component of a kind is an instance of."""

DEFAULTS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "tracer": ("otel", "dummy"),
    "store": ("memory",),
    "runner": ("agent",),
    "adapter": ("triplet",),
    "credit": ("first_occurrence",),
    "algorithm": (),
    "strategy": ("shared-memory",),
    "llm_proxy": (),
    "engine": (),
    "hook": (),
}
"""What ``None`` selects: the first of these names that is installed, else nothing."""

FIRST_PARTY: Final[Mapping[Kind, Mapping[str, str]]] = {
    "tracer": {"agentops": "lightning-tracer-agentops", "otel": "lightning-tracer-otel"},
    "store": {
        "sqlite": "lightning-store-sqlite",
        "http": "lightning-store-http",
        "https": "lightning-store-http",
        "postgres": "lightning-store-postgres",
        "postgresql": "lightning-store-postgres",
    },
    "runner": {},
    "adapter": {
        "triplet": "lightning-adapter-triplet",
        "llm-proxy-triplet": "lightning-adapter-triplet",
        "messages": "lightning-adapter-messages",
    },
    "credit": {},
    "algorithm": {
        "search": "lightning-algorithm-search",
        "grpo": "lightning-algorithm-grpo",
        "legacy": "lightning-legacy",
    },
    "strategy": {"client-server": "lightning-store-http", "cs": "lightning-store-http"},
    "llm_proxy": {"gateway": "lightning-llm-proxy"},
    "engine": {"llamacpp": "lightning-engine-llamacpp"},
    "hook": {"progress": "lightning-hook-progress"},
}
"""Which of this project's packages to install for a name."""
