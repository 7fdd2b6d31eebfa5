"""What type checkers see of the arguments of `Trainer` and of `resolve`; see decorators.py."""

from typing import Any, assert_type

from lightning_core import (
    LLM,
    BaseTracer,
    CommandAgent,
    FastAlgorithm,
    Hook,
    InMemoryLightningStore,
    LightningStore,
    LitAgent,
    Trainer,
    TrainingResult,
    resolve,
    rollout,
)
from lightning_core.adapter import TraceAdapter, TraceMessagesAdapter, TraceTripletAdapter
from lightning_core.adapter.credit import CreditPolicy
from lightning_core.algorithm import BaseAlgorithm, MockAlgorithm
from lightning_core.engine import BaseEngine
from lightning_core.execution import ExecutionStrategy, SharedMemoryExecutionStrategy
from lightning_core.llm_proxy import LLMProxy
from lightning_core.runner import AgentRunnerV2, BaseRunner
from lightning_core.store import SqliteLightningStore
from lightning_core.tracer import AgentOpsTracer, DummyTracer, LightningSpanProcessor, OtelTracer
from lightning_core.types import NamedResources, Triplet


@rollout
def agent(task: str, llm: LLM) -> float:
    return 1.0


class Shout(LitAgent[str]): ...


def make_tracer() -> BaseTracer:
    return DummyTracer()


# Trainer


def every_part_is_given_by_name() -> Trainer:
    return Trainer(
        tracer="otel",
        store="sqlite:///runs.db",
        adapter="triplet",
        runner="agent",
        strategy="shared-memory",
        algorithm="search",
        llm_proxy="gateway",
        engine="llamacpp",
        hooks=["progress", "package.module:Class"],
        n_runners=4,
        max_rollouts=None,
        initial_resources={"llm": LLM(endpoint="http://localhost:8080", model="llama3")},
    )


def every_part_is_given_as_an_instance(proxy: LLMProxy, engine: BaseEngine) -> Trainer:
    tracer = DummyTracer()
    return Trainer(
        tracer=tracer,
        store=InMemoryLightningStore(),
        adapter=TraceTripletAdapter(),
        runner=AgentRunnerV2(tracer),
        strategy=SharedMemoryExecutionStrategy(),
        algorithm=MockAlgorithm(),
        llm_proxy=proxy,
        engine=engine,
        hooks=[Hook()],
    )


def parts_are_given_as_classes_factories_and_settings() -> None:
    Trainer(tracer=DummyTracer, store=InMemoryLightningStore, algorithm=MockAlgorithm, hooks=Hook)
    Trainer(tracer=make_tracer, store=lambda: InMemoryLightningStore(), adapter=TraceMessagesAdapter)
    Trainer(tracer={"type": "otel", "instrument": ["openai"]}, hooks={"type": Hook})
    Trainer(tracer={"type": OtelTracer, "propagate_threads": False}, store={"type": SqliteLightningStore})
    Trainer(tracer=None, store=None, hooks=None, algorithm=None)
    Trainer(dev=True, n_workers=1, max_tasks=3, daemon=True, triplet_exporter="triplet")


def what_is_no_such_part_is_an_error(resources: dict[str, Any]) -> None:
    Trainer(tracer=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(tracer=InMemoryLightningStore())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(tracer=InMemoryLightningStore)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(store=DummyTracer())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(algorithm=agent)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(strategy=4)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(hooks=[4])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Trainer(n_runners="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(initial_resources="llm")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer("otel")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    Trainer(trcer="otel")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Trainer(**resources)


def parts_of_a_trainer_have_their_types(trainer: Trainer) -> None:
    assert_type(trainer.tracer, BaseTracer)
    assert_type(trainer.store, LightningStore)
    assert_type(trainer.adapter, TraceAdapter[Any] | None)
    assert_type(trainer.algorithm, BaseAlgorithm | None)
    assert_type(trainer.runner, BaseRunner[Any])
    assert_type(trainer.hooks, list[Hook])
    assert_type(trainer.initial_resources, NamedResources | None)


def fitting_takes_agents_and_data(trainer: Trainer) -> None:
    assert_type(trainer.fit(agent, ["a", "b"], val_data=["c"]), TrainingResult)
    assert_type(trainer.fit_v2(Shout(), ["a"], val_dataset=("b",)), TrainingResult)
    assert_type(trainer.dev(agent, ["a"]), TrainingResult)
    trainer.fit(CommandAgent("./agent"), ["a"])
    trainer.fit(len, ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    trainer.fit_v2(Shout(), 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# resolve


def a_name_becomes_a_part_of_its_kind() -> None:
    assert_type(resolve("tracer", "otel"), BaseTracer)
    assert_type(resolve("store", "sqlite:///runs.db"), LightningStore)
    assert_type(resolve("runner", "agent", tracer=DummyTracer()), BaseRunner[Any])
    assert_type(resolve("adapter", {"type": "triplet"}), TraceAdapter[Any] | None)
    assert_type(resolve("credit", "final_reward"), CreditPolicy)
    assert_type(resolve("algorithm", None), BaseAlgorithm | None)
    assert_type(resolve("strategy", SharedMemoryExecutionStrategy), ExecutionStrategy)
    assert_type(resolve("engine", None), BaseEngine | None)
    assert_type(resolve("hook", Hook()), Hook | None)
    resolve("tracr", "otel")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


# What the parts give


def parts_are_typed_where_they_are_imported_from() -> None:
    assert_type(TraceTripletAdapter().adapt(DummyTracer().get_last_trace()), list[Triplet])
    with OtelTracer().trace_context("work") as trace:
        assert_type(trace, LightningSpanProcessor)
    AgentOpsTracer(daemon="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SqliteLightningStore(pth="runs.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def one_task_is_run_without_a_trainer(store: LightningStore) -> None:
    runner: AgentRunnerV2[str] = AgentRunnerV2(DummyTracer(), max_rollouts=1)
    with runner.run_context(agent=Shout(), store=store, hooks=[Hook()]) as ready:
        assert_type(ready, AgentRunnerV2[str])
        await ready.step("a", mode="train")
        await ready.step(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await ready.step("a", mode="training")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


assert issubclass(MockAlgorithm, FastAlgorithm)
