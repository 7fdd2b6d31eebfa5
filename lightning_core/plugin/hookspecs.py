"""What a plugin can implement: one hook per kind of component, and the four events of a rollout's life."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_core.plugin.component import Component
from lightning_core.plugin.markers import hookspec

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from lightning_core.adapter.base import TraceAdapter
    from lightning_core.adapter.credit.base import CreditPolicy
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.engine.base import BaseEngine
    from lightning_core.execution.base import ExecutionStrategy
    from lightning_core.litagent import LitAgent
    from lightning_core.runner.base import BaseRunner
    from lightning_core.store.base import LightningStore
    from lightning_core.tracer.base import BaseTracer
    from lightning_core.tracer.instrumentations import Instrumentations
    from lightning_core.types import Hook, RolloutV2, Span

__all__ = ["LightningSpecs"]


class LightningSpecs:
    """The hooks of lightning-core.

    The hooks named ``lightning_*`` are functions of a plugin's ``plugin.py``. Those named after a kind are called
    without arguments when a user selects one of the package's components of that kind, or runs ``lightning-core
    plugins --check``, and return the components. Returning them must import no heavy package: that belongs
    into the factory.

    The hooks named ``on_*`` are methods of a :class:`~lightning_core.types.Hook` and need no decorator,
    unless to say ``@hookimpl(tryfirst=True)`` or ``@hookimpl(trylast=True)``. They are called with keywords
    and may leave out those that they do not use.
    """

    @hookspec
    def lightning_tracers(self) -> Iterable[Component[BaseTracer]]:
        """Provide tracers, which record what happens while an agent runs.

        Called when a tracer of the package is selected: ``Trainer(tracer="console")``.

        Returns:
            The package's tracers. A factory returns a ``BaseTracer``.

        Example:
            ::

                @hookimpl
                def lightning_tracers():
                    return [
                        Component(
                            "console", make_tracer, ConsoleConfig, summary="Prints every span.", api_version=1
                        )
                    ]
        """
        raise NotImplementedError

    @hookspec
    def lightning_instrumentations(self) -> Instrumentations:
        """Provide the instrumentations of a tracer to programs that use them without it.

        Called in each package that has a tracer when a program calls
        ``lightning_core.instrumentation.instrument_all()``.

        Returns:
            The ones that the tracer itself switches on and off.

        Example:
            ::

                @hookimpl
                def lightning_instrumentations():
                    from .instrumentation import INSTRUMENTATIONS

                    return INSTRUMENTATIONS
        """
        raise NotImplementedError

    @hookspec
    def lightning_stores(self) -> Iterable[Component[LightningStore]]:
        """Provide stores, which keep rollouts, spans and resources.

        Called when a store of the package is selected, by name or by a URL:
        ``Trainer(store="files:///data/run")``.

        Returns:
            The package's stores. A factory returns a ``LightningStore``; ``from_url`` turns a URL into
            settings.

        Example:
            ::

                @hookimpl
                def lightning_stores():
                    return [Component("files", make_store, FilesConfig, from_url=read_url, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_runners(self) -> Iterable[Component[BaseRunner[Any]]]:
        """Provide runners, which take rollouts from the store and run the agent.

        Called when a runner of the package is selected: ``Trainer(runner="replay")``.

        Returns:
            The package's runners. A factory returns a ``BaseRunner``; it is given the tracer if it takes
            ``tracer``.

        Example:
            ::

                @hookimpl
                def lightning_runners():
                    return [Component("replay", make_runner, ReplayConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_adapters(self) -> Iterable[Component[TraceAdapter[Any]]]:
        """Provide adapters, which turn spans into training data.

        Called when an adapter of the package is selected: ``Trainer(adapter="pairs")``.

        Returns:
            The package's adapters. A factory returns a ``TraceAdapter``.

        Example:
            ::

                @hookimpl
                def lightning_adapters():
                    return [Component("pairs", make_adapter, PairsConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_credits(self) -> Iterable[Component[CreditPolicy]]:
        """Provide credit policies, which say how rewards become the reward of each LLM call.

        Called when a credit of the package is selected: ``resolve("credit", "shared")``, or
        ``Trainer(adapter={"type": "triplet", "reward_match": "shared"})``.

        Returns:
            The package's policies. A factory returns a ``CreditPolicy``.

        Example:
            ::

                @hookimpl
                def lightning_credits():
                    return [Component("shared", make_credit, SharedConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_algorithms(self) -> Iterable[Component[BaseAlgorithm]]:
        """Provide algorithms, which decide what runs with which resources, and learn from it.

        Called when an algorithm of the package is selected: ``Trainer(algorithm="random")``.

        Returns:
            The package's algorithms. A factory returns a ``BaseAlgorithm``.

        Example:
            ::

                @hookimpl
                def lightning_algorithms():
                    return [Component("random", make_algorithm, RandomConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_strategies(self) -> Iterable[Component[ExecutionStrategy]]:
        """Provide strategies, which say where the algorithm and the runners execute.

        Called when a strategy of the package is selected: ``Trainer(strategy="slurm")``.

        Returns:
            The package's strategies. A factory returns an ``ExecutionStrategy``; it is given the number of
            runners if it, or its settings, take ``n_runners``.

        Example:
            ::

                @hookimpl
                def lightning_strategies():
                    return [Component("slurm", make_strategy, SlurmConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_llm_proxies(self) -> Iterable[Component[Any]]:
        """Provide LLM proxies, which stand between agents and models and record the calls.

        Called when a proxy of the package is selected: ``Trainer(llm_proxy="recorder")``.

        Returns:
            The package's proxies. What a factory returns has the methods ``start`` and ``stop``.

        Example:
            ::

                @hookimpl
                def lightning_llm_proxies():
                    return [Component("recorder", make_proxy, RecorderConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_engines(self) -> Iterable[Component[BaseEngine]]:
        """Provide engines, which serve a model behind an OpenAI-compatible endpoint.

        Called when an engine of the package is selected: ``resolve("engine", "tiny")``.

        Returns:
            The package's engines. A factory returns a ``BaseEngine`` that is not started.

        Example:
            ::

                @hookimpl
                def lightning_engines():
                    return [Component("tiny", make_engine, TinyConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    def lightning_hooks(self) -> Iterable[Component[Hook]]:
        """Provide lifecycle hooks.

        Called when a hook of the package is selected: ``Trainer(hooks=["budget"])``.

        Returns:
            The package's hooks. A factory returns a ``Hook``, whose ``on_*`` methods the runner awaits.

        Example:
            ::

                @hookimpl
                def lightning_hooks():
                    return [Component("budget", make_hook, BudgetConfig, api_version=1)]
        """
        raise NotImplementedError

    @hookspec
    async def on_rollout_start(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], rollout: RolloutV2
    ) -> None:
        """Follow the start of an attempt.

        Awaited once the attempt's resources are known, before its trace is opened. Raise
        ``VetoRollout(reason)`` to end the rollout as ``cancelled``; any other error is logged and changes
        nothing.

        Example:
            ::

                class Budget(Hook):
                    async def on_rollout_start(self, *, rollout, **others):
                        if self.spent > self.limit:
                            raise VetoRollout("the budget is spent")
        """
        raise NotImplementedError

    @hookspec
    async def on_trace_start(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], tracer: BaseTracer, rollout: RolloutV2
    ) -> None:
        """Follow the opening of the trace.

        Awaited inside the trace context, before the agent is called: spans started here belong to the
        rollout.

        Example:
            ::

                class Label(Hook):
                    async def on_trace_start(self, *, rollout, **others):
                        emit_message(f"worker {rollout.attempt.worker_id}")
        """
        raise NotImplementedError

    @hookspec
    async def on_trace_end(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], tracer: BaseTracer, rollout: RolloutV2
    ) -> None:
        """Follow the end of the agent's call, also after an error or a cancellation.

        Awaited while the trace context is still open: the last chance to emit a reward.

        Example:
            ::

                class Length(Hook):
                    async def on_trace_end(self, *, tracer, **others):
                        emit_message(f"{len(tracer.get_last_trace())} spans")
        """
        raise NotImplementedError

    @hookspec
    async def on_rollout_end(
        self,
        *,
        agent: LitAgent[Any],
        runner: BaseRunner[Any],
        rollout: RolloutV2,
        spans: Sequence[ReadableSpan] | Sequence[Span],
    ) -> None:
        """Follow the end of an attempt, also after an error or a cancellation.

        Awaited when the spans are in the store; ``spans`` are these.

        Example:
            ::

                class Rewards(Hook):
                    async def on_rollout_end(self, *, rollout, spans, **others):
                        print(rollout.rollout_id, find_final_reward(spans))
        """
        raise NotImplementedError
