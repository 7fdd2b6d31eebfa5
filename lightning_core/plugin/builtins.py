"""The components that come with the core, registered like those of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core.plugin.component import Component
from lightning_core.plugin.markers import hookimpl

__all__ = [
    "AgentRunnerConfig",
    "BaselineConfig",
    "DiscountedConfig",
    "EndpointConfig",
    "GroupRelativeConfig",
    "SharedMemoryConfig",
    "TrajectoryConfig",
]


class SharedMemoryConfig(BaseModel):
    """Settings of the ``shared-memory`` strategy."""

    model_config = ConfigDict(extra="forbid")

    n_runners: int = Field(1, ge=1, description="How many runners take rollouts at the same time.")
    graceful_seconds: float = Field(
        5.0,
        ge=0,
        description="Seconds in which running rollouts may end once the run is over or interrupted.",
    )
    cancel_seconds: float = Field(5.0, ge=0, description="Seconds in which cancelled rollouts may end.")


class BaselineConfig(BaseModel):
    """Settings of the ``baseline`` algorithm."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: int = Field(1, ge=1, description="How often each task of the training set is run.")
    max_attempts: int = Field(1, ge=1, description="How often each rollout may be tried.")
    timeout_seconds: float | None = Field(None, gt=0, description="Time limit of an attempt, in seconds.")


class EndpointConfig(BaseModel):
    """Settings of the ``endpoint`` engine."""

    model_config = ConfigDict(extra="forbid")

    base_url: str | None = Field(None, description="The API's base URL; none: ``OPENAI_BASE_URL``.")
    model: str | None = Field(None, description="The model; none: ``OPENAI_MODEL``, or the first one served.")
    api_key: SecretStr | None = Field(None, description="The key; none: ``OPENAI_API_KEY``.")
    timeout: float = Field(
        10.0, gt=0, description="Seconds within which the endpoint must answer at the start."
    )


class AgentRunnerConfig(BaseModel):
    """Settings of the ``agent`` runner."""

    model_config = ConfigDict(extra="forbid")

    max_rollouts: int | None = Field(
        None, ge=1, description="Rollouts after which a runner ends; none: when it is stopped."
    )
    poll_interval: float = Field(
        5.0, gt=0, description="The longest wait, in seconds, before an idle runner looks again for work."
    )
    concurrency: int = Field(1, ge=1, description="Rollouts that one runner runs at the same time.")
    heartbeat_interval: float = Field(
        10.0, gt=0, description="Seconds between the signs of life that keep an attempt's lease."
    )
    retry_seconds: float = Field(
        300.0, ge=0, description="How long to keep spans and results, and try again, while the store is away."
    )
    worker_name: str | None = Field(
        None,
        min_length=1,
        description="Stands for host and process in the worker's id; none: `<host>-<process id>`.",
    )


class TrajectoryConfig(BaseModel):
    """Settings of the ``trajectory`` adapter."""

    model_config = ConfigDict(extra="forbid")

    triplets: Any = Field(
        "triplet",
        description="The adapter that reads the turns: any specification of one that gives triplets.",
    )


class DiscountedConfig(BaseModel):
    """Settings of the ``discounted`` credit."""

    model_config = ConfigDict(extra="forbid")

    gamma: float = Field(
        1.0, ge=0, le=1, description="What a reward is multiplied by for each call between it and the call."
    )


class GroupRelativeConfig(BaseModel):
    """Settings of the ``group-relative`` credit."""

    model_config = ConfigDict(extra="forbid")

    scale: bool = Field(True, description="Divide by the standard deviation of the group.")
    epsilon: float = Field(1e-6, ge=0, description="Is added to that deviation.")


def _build(module: str, name: str, /, **arguments: Any) -> Any:
    # By string, since the layers below must not depend on the parts that are built on them.
    return getattr(import_module(f"lightning_core.{module}"), name)(**arguments)


def make_memory_store() -> Any:
    """Make the in-memory store."""
    return _build("store.memory", "InMemoryLightningStore")


def make_shared_memory_strategy(**settings: Any) -> Any:
    """Make the strategy that runs everything in threads of this process."""
    return _build("execution.shared_memory", "SharedMemoryExecutionStrategy", **settings)


def make_dummy_tracer() -> Any:
    """Make the tracer that records what the agent emits, and nothing else."""
    return _build("tracer.dummy", "DummyTracer")


def make_agent_runner(tracer: Any = None, **settings: Any) -> Any:
    """Make the runner; without a tracer it uses the dummy tracer."""
    return _build("runner.agent", "AgentRunnerV2", tracer=tracer or make_dummy_tracer(), **settings)


def make_baseline_algorithm(**settings: Any) -> Any:
    """Make the algorithm that runs every task once and reports."""
    return _build("algorithm.baseline", "Baseline", **settings)


def make_endpoint_engine(**settings: Any) -> Any:
    """Make the engine that stands for an endpoint which somebody else serves."""
    return _build("engine.endpoint", "EndpointEngine", **settings)


def make_trajectory_adapter(triplets: Any) -> Any:
    """Make the adapter that merges the turns which another adapter reads."""
    from lightning_core.plugin.resolution import resolve_argument

    source = resolve_argument("adapter.triplets", "adapter", triplets)
    return _build("adapter.trajectory", "TrajectoryAdapter", triplets=source)


def _credit(name: str) -> Callable[..., Any]:
    def make_credit(**settings: Any) -> Any:
        return _build("adapter.credit", name, **settings)

    return make_credit


@hookimpl
def lightning_stores() -> Iterable[Component[Any]]:
    """The stores of the core."""
    return [
        Component(
            "memory",
            make_memory_store,
            summary="Keeps everything in this process; gone when it ends.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_strategies() -> Iterable[Component[Any]]:
    """The strategies of the core."""
    return [
        Component(
            "shared-memory",
            make_shared_memory_strategy,
            SharedMemoryConfig,
            summary="Runs the algorithm and the runners in threads of this process.",
            api_version=1,
            aliases=("shm",),
        )
    ]


@hookimpl
def lightning_tracers() -> Iterable[Component[Any]]:
    """The tracers of the core."""
    return [
        Component(
            "dummy",
            make_dummy_tracer,
            summary="Records emitted rewards, messages, objects and exceptions only.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_runners() -> Iterable[Component[Any]]:
    """The runners of the core."""
    return [
        Component(
            "agent",
            make_agent_runner,
            AgentRunnerConfig,
            summary="Runs a LitAgent on the rollouts of the store, several at once.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_adapters() -> Iterable[Component[Any]]:
    """The adapters of the core."""
    return [
        Component(
            "trajectory",
            make_trajectory_adapter,
            TrajectoryConfig,
            summary="Merges the turns of an attempt into token sequences with a loss mask.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_credits() -> Iterable[Component[Any]]:
    """The credit policies of the core."""
    return [
        Component(
            "first_occurrence",
            _credit("FirstOccurrenceCredit"),
            summary="A reward belongs to the last call before it.",
            api_version=1,
        ),
        Component(
            "first_sibling",
            _credit("FirstSiblingCredit"),
            summary="A reward belongs to the last call before it among its siblings and below them.",
            api_version=1,
        ),
        Component(
            "final",
            _credit("FinalCredit"),
            summary="Every call gets the last reward of the attempt.",
            api_version=1,
        ),
        Component(
            "discounted",
            _credit("DiscountedCredit"),
            DiscountedConfig,
            summary="A call gets the discounted sum of all rewards after it.",
            api_version=1,
        ),
        Component(
            "group-relative",
            _credit("GroupRelativeCredit"),
            GroupRelativeConfig,
            summary="Every call gets the final reward, relative to other rollouts of the task.",
            api_version=1,
        ),
    ]


@hookimpl
def lightning_algorithms() -> Iterable[Component[Any]]:
    """The algorithms of the core."""
    return [
        Component(
            "baseline",
            make_baseline_algorithm,
            BaselineConfig,
            summary="Runs each task once and logs statuses, spans and rewards.",
            api_version=1,
            aliases=("mock",),
        )
    ]


@hookimpl
def lightning_engines() -> Iterable[Component[Any]]:
    """The engines of the core."""
    return [
        Component(
            "endpoint",
            make_endpoint_engine,
            EndpointConfig,
            summary="Uses an OpenAI-compatible endpoint that is served elsewhere.",
            api_version=1,
        )
    ]
