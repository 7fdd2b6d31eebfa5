"""``Trainer.check`` runs one rollout and reports each thing that training on it would miss, with its fix."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from opentelemetry import trace as trace_api

from lightning_core import (
    LLM,
    AgentRunnerV2,
    BaseEngine,
    Hook,
    InMemoryLightningStore,
    PromptTemplate,
    Trainer,
    emit_reward,
    rollout,
)
from lightning_core.adapter import Explanation, TraceAdapter, advice
from lightning_core.algorithm import Baseline, Need
from lightning_core.bridge import run_sync
from lightning_core.emitter.context import emit_span, emitting_tracer
from lightning_core.errors import ConfigurationError, EngineError, VetoRollout
from lightning_core.store.base import StoreCapabilities
from lightning_core.tracer import DummyTracer
from lightning_core.trainer import CheckPoint, CheckReport
from lightning_core.trainer.check.evidence import Evidence
from lightning_core.trainer.check.points import Seen, check_points
from lightning_core.trainer.check.watch import SDKS, Watch
from lightning_core.types import Attempt, RolloutV2, Span

from .fake_calls import answer, emit_call

httpx = pytest.importorskip("httpx")

MODEL = LLM(endpoint="http://model.test/v1", model="asked")
PROMPT = PromptTemplate(template="{question}")


@pytest.fixture(autouse=True)
def no_clients_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this process have imported says nothing of the agents here."""
    for module in SDKS:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(
        sys.modules,
        "opentelemetry.instrumentation.instrumentor",
        cast("Any", SimpleNamespace(BaseInstrumentor=FakeInstrumentor)),
    )


class FakeInstrumentor:
    """What an instrumentation of OpenTelemetry's looks like from outside."""

    is_instrumented_by_opentelemetry = False
    requirement = ""

    def instrumentation_dependencies(self) -> Sequence[str]:
        return [self.requirement]


class FakeOpenAIInstrumentor(FakeInstrumentor):
    requirement = "openai >= 1.0"
    _instance: ClassVar[FakeInstrumentor | None] = None


class Needing(Baseline):
    def __init__(self, *needs: Need) -> None:
        super().__init__()
        self.needs = frozenset(needs)


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", "adapter": Few(1), "initial_resources": {"llm": MODEL}, **settings})


def check(act: Callable[[], Any], *, timeout_seconds: float | None = None, **settings: Any) -> CheckReport:
    @rollout
    def solve(task: Any, llm: LLM) -> Any:
        return act()

    return trainer(**settings).check(solve, "task", timeout_seconds=timeout_seconds)


def point(report: CheckReport, name: str) -> CheckPoint:
    (found,) = [one for one in report.points if one.name == name]
    return found


def send(
    path: str = "/chat/completions",
    *,
    status: int = 200,
    host: str = "http://model.test/v1",
    **body: Any,
) -> None:
    """Call a model that is not there, as a client library would."""
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=answer()))
    with httpx.Client(transport=transport) as client:
        client.post(host + path, json={"model": "asked", "messages": [], **body})


class Few(TraceAdapter[list[int]]):
    """Makes a fixed number of samples of any trace."""

    def __init__(self, number: int) -> None:
        self.number = number

    def adapt(self, source: Any, /) -> list[int]:
        return [0] * self.number


class TestSound:
    def test_a_sound_rollout_has_neither_problem_nor_warning(self) -> None:
        def act() -> float:
            emit_call(logprobs=True)
            return 1.0

        report = check(act, algorithm=Needing("rewards", "llm_calls", "token_ids", "logprobs"))
        assert report.ok
        assert not report.warnings
        assert (report.agent, report.status, report.reason, report.reward) == (
            "solve",
            "succeeded",
            None,
            1.0,
        )
        assert [span.name for span in report.spans] == ["ChatCompletion", "lightning.reward"]
        names = [one.name for one in report.points]
        assert names == [
            *(
                "rollout",
                "llm calls",
                "tracer",
                "token ids",
                "log-probabilities",
                "reward",
                "spans",
                "adapter",
            ),
            "settings",
        ]

    def test_text_and_json(self) -> None:
        report = check(lambda: None)
        lines = str(report).splitlines()
        assert lines[0] == "one rollout of solve: 1 problem, 1 warning"
        place = lines.index("  problem: reward: the agent neither returned a reward nor emitted one")
        assert lines[place + 1].startswith("      fix: return the reward")
        assert CheckReport.model_validate_json(report.model_dump_json()).points == report.points
        assert str(check(lambda: emit_call() or 1.0)).startswith(
            "one rollout of solve: nothing is wrong\n  ok:"
        )

    def test_the_users_store_gets_nothing(self) -> None:
        train = trainer()

        @rollout
        def solve(task: Any, llm: LLM) -> float:
            return 1.0

        train.check(solve, "task")
        assert run_sync(train.store.query_rollouts()) == []
        assert run_sync(train.store.query_runs()) == []
        assert run_sync(train.store.get_latest_resources()) is None
        # And the same trainer can be used for good.
        assert train.algorithm is None
        assert train.dev(solve, [1, 2]).rollouts == {"succeeded": 2}

    def test_nothing_is_left_behind(self) -> None:
        before = (httpx.Client.send, httpx.AsyncClient.send, logging.getLogger().level, warnings.showwarning)
        handlers = list(logging.getLogger().handlers)
        check(lambda: send() or 1.0)
        after = (httpx.Client.send, httpx.AsyncClient.send, logging.getLogger().level, warnings.showwarning)
        assert after == before
        assert list(logging.getLogger().handlers) == handlers
        assert "never awaited" not in str(warnings.filters)

    def test_the_trainers_own_parts_are_used(self) -> None:
        seen: list[str] = []

        class Following(Hook):
            def init(self, *_: Any, **__: Any) -> None:
                seen.append("init")

            async def on_rollout_start(self, **_: Any) -> None:
                seen.append("start")

            async def on_rollout_end(self, **_: Any) -> None:
                seen.append("end")

            def teardown(self, *_: Any, **__: Any) -> None:
                seen.append("teardown")

        class Engine(BaseEngine):
            def start(self) -> LLM:
                seen.append("engine")
                return MODEL

            def stop(self) -> None:
                seen.append("stop")

        class Runner(AgentRunnerV2[Any]):
            async def iter(self, **others: Any) -> None:
                seen.append("runner")
                await super().iter(**others)

        report = check(
            lambda: emit_call() or seen.append("agent") or 1.0,
            hooks=Following(),
            engine=Engine(),
            initial_resources=None,
            runner=Runner(DummyTracer()),
        )
        assert report.ok
        assert seen == ["init", "engine", "runner", "start", "agent", "end", "stop", "teardown"]

    @pytest.mark.parametrize(
        "resource", [MODEL.model_copy(update={"endpoint": "http://proxy.test/v1"}), None]
    )
    def test_calls_go_through_the_trainers_proxy(self, resource: LLM | None) -> None:
        seen: list[Any] = []

        class Proxy:
            def set_store(self, store: Any) -> None:
                seen.append(store)

            def start(self) -> LLM | None:
                seen.append("start")
                return resource

            def stop(self) -> None:
                seen.append("stop")

        @rollout
        def solve(task: Any, llm: LLM) -> float:
            seen.append(llm.endpoint)
            emit_call()
            return 1.0

        train = trainer(llm_proxy=Proxy(), initial_resources={"main_llm": MODEL})
        report = train.check(solve, "task")
        assert seen[0] is not train.store
        assert seen[1:] == ["start", resource.endpoint if resource else MODEL.endpoint, "stop"]
        assert point(report, "settings").level == ("ok" if resource else "warning")

    def test_resources_are_those_that_fit_would_start_from(self) -> None:
        store = InMemoryLightningStore()
        run_sync(store.add_resources({"llm": MODEL}))
        assert check(lambda: 1.0, store=store, initial_resources=None).status == "succeeded"


class TestRollout:
    def test_the_agents_error_is_shown_with_its_traceback(self) -> None:
        def act() -> None:
            raise ZeroDivisionError("of all things")

        report = check(act)
        found = point(report, "rollout")
        assert (report.status, report.reason) == ("failed", "agent_error")
        assert (found.level, found.text) == (
            "problem",
            "failed, agent_error: ZeroDivisionError: of all things",
        )
        assert any("in act" in line for line in found.details)
        assert found.fix
        # What it did not come to is no problem of its own, nor is it told twice.
        assert [one.name for one in report.problems] == ["rollout"]
        assert all(one.name != "log" for one in report.points)

    def test_a_time_limit(self) -> None:
        @rollout
        async def stuck(task: Any, llm: LLM) -> None:
            await asyncio.Event().wait()

        report = trainer().check(stuck, "task", timeout_seconds=0.05)
        assert report.reason == "timeout"
        assert "timeout_seconds=0.05" in point(report, "rollout").text
        assert "timeout_seconds" in point(report, "rollout").fix

    def test_missing_resources(self) -> None:
        report = check(lambda: 1.0, initial_resources={"prompt": PROMPT})
        assert report.reason == "no_resources"
        assert "initial_resources" in point(report, "rollout").fix

    def test_a_veto_of_a_hook(self) -> None:
        class Never(Hook):
            async def on_rollout_start(self, **_: Any) -> None:
                raise VetoRollout("the budget is spent")

        report = check(lambda: 1.0, hooks=Never())
        assert report.status == "cancelled"
        assert "the budget is spent" in point(report, "rollout").text

    def test_a_runner_that_takes_nothing(self) -> None:
        report = check(lambda: 1.0, runner=AgentRunnerV2(DummyTracer(), max_rollouts=0))
        assert point(report, "rollout").level == "problem"
        assert "max_rollouts" in point(report, "rollout").fix

    def test_an_engine_that_does_not_start(self) -> None:
        class Engine(BaseEngine):
            def start(self) -> LLM:
                raise EngineError("no such model")

            def stop(self) -> None: ...

        report = check(lambda: 1.0, engine=Engine())
        assert report.status is None
        assert point(report, "set-up").level == "problem"
        assert "EngineError: no such model" in point(report, "set-up").text

    def test_a_task_that_the_users_store_cannot_keep(self) -> None:
        class Strict(InMemoryLightningStore):
            capabilities: ClassVar[StoreCapabilities] = StoreCapabilities()

        @rollout
        def solve(task: Any, llm: LLM) -> float:
            return 1.0

        report = trainer(store=Strict()).check(solve, {"ids": {1, 2}})
        assert point(report, "store").level == "problem"
        assert "JSON" in point(report, "store").fix
        assert trainer().check(solve, {"ids": {1, 2}}).status == "succeeded"

    def test_no_agent(self) -> None:
        with pytest.raises(ConfigurationError, match="@rollout"):
            trainer().check(lambda task: 1.0, "task")  # pyright: ignore[reportArgumentType] - what users may do


class TestAwaiting:
    def test_a_coroutine_that_nobody_awaits(self) -> None:
        async def judge() -> float:
            return 1.0

        @rollout
        async def solve(task: Any, llm: LLM) -> float:
            judge()  # pyright: ignore[reportUnusedCoroutine] - which is what is found
            return 1.0

        with warnings.catch_warnings(record=True) as shown:
            found = point(trainer().check(solve, "task"), "await")
        assert shown == []
        assert found.level == "problem"
        assert "judge' was called and never awaited" in found.text
        assert "await" in found.fix

    def test_a_sync_agent_that_returns_a_coroutine(self) -> None:
        async def work() -> float:
            return 1.0

        report = check(work)
        assert "returned a coroutine" in point(report, "rollout").text
        assert "return await" in point(report, "rollout").fix
        assert "work" in point(report, "await").text

    def test_other_warnings_are_shown_as_ever(self) -> None:
        with pytest.warns(UserWarning, match="mine"):
            report = check(lambda: warnings.warn("mine", stacklevel=1) or 1.0)
        assert report.ok


class TestReward:
    def test_none_is_a_problem_for_what_learns_from_it(self) -> None:
        for algorithm, level in ((None, "problem"), (Needing("rewards"), "problem"), ("baseline", "warning")):
            found = point(check(lambda: None, algorithm=algorithm), "reward")
            assert (found.level, bool(found.fix)) == (level, True)
            assert "neither returned a reward nor emitted one" in found.text

    @pytest.mark.parametrize(
        ("rewards", "text"), [([1.0, 1.0], "the same reward twice"), ([0.5, 1.0], "two rewards with no call")]
    )
    def test_recorded_twice(self, rewards: list[float], text: str) -> None:
        def act() -> None:
            emit_call()
            for reward in rewards:
                emit_reward(reward)

        found = point(check(act), "reward")
        assert (found.level, bool(found.fix)) == ("warning", True)
        assert text in found.text

    def test_emitted_and_returned_is_one(self) -> None:
        assert point(check(lambda: emit_reward(0.5) and 0.5), "reward").level == "ok"

    def test_rewards_of_several_turns(self) -> None:
        def act() -> float:
            for content, reward in (("a", 0.1), ("b", 0.2)):
                emit_call(content)
                emit_reward(reward)
            emit_call("c")
            return 1.0

        found = point(check(act), "reward")
        assert (found.level, found.text) == ("ok", "3 rewards (0.1, 0.2, 1); the last is the final one")

    def test_no_finite_number(self) -> None:
        def act() -> float:
            emit_span("lightning.reward", {"reward": float("nan")})
            return 1.0

        found = point(check(act), "reward")
        assert found.level == "problem"
        assert "1 of 2 reward spans hold no finite number" in found.text


class TestCallsAndTokens:
    def test_models_are_named(self) -> None:
        found = point(check(lambda: emit_call() or 1.0), "llm calls")
        assert (found.level, found.text) == ("ok", "1 recorded call of answered")

    @pytest.mark.parametrize(("needs", "level"), [((), "warning"), (("llm_calls",), "problem")])
    def test_none_was_recorded(self, needs: tuple[Need, ...], level: str) -> None:
        found = point(check(lambda: 1.0, algorithm=Needing(*needs)), "llm calls")
        assert (found.level, found.text) == (level, "none was recorded")
        assert "otel" in found.fix

    def test_calls_without_an_answer(self) -> None:
        def act(also: bool) -> float:
            emit_call(answered=False)
            if also:
                emit_call()
            return 1.0

        for also, level in ((True, "warning"), (False, "problem")):
            found = point(check(lambda also=also: act(also)), "llm calls")
            assert found.level == level
            assert "1 of them without an answer" in found.text

    def test_token_ids_and_where_they_come_from(self) -> None:
        found = point(check(lambda: emit_call() or 1.0), "token ids")
        assert (found.level, found.text) == ("ok", "in all of 1 call")
        assert found.details == [
            "1 x prompt: prompt_token_ids of the raw answer; response: token_ids of the raw answer's choice"
        ]

    @pytest.mark.parametrize(("needs", "level"), [((), "warning"), (("token_ids",), "problem")])
    def test_no_token_ids(self, needs: tuple[Need, ...], level: str) -> None:
        found = point(check(lambda: emit_call(ids=False) or 1.0, algorithm=Needing(*needs)), "token ids")
        assert (found.level, found.text) == (level, "missing in 1 of 1 call")
        assert "the engine gave no prompt token ids" in found.details[0]
        assert "gateway" in found.fix

    @pytest.mark.parametrize("first", ["traced", "through the gateway"])
    def test_token_ids_that_the_gateway_did_not_get_are_the_engines_fault(self, first: str) -> None:
        def act() -> float:
            through = {"lightning.llm_proxy.upstream": "u"}
            emit_call("a", ids=False, also=through if first == "through the gateway" else None)
            emit_call("b", ids=False, also=through)
            return 1.0

        assert "the gateway got none" in point(check(act), "token ids").fix

    def test_token_ids_of_calls_beside_the_gateway(self) -> None:
        def act() -> float:
            emit_call("a", also={"lightning.llm_proxy.upstream": "u"})
            emit_call("b", ids=False)
            return 1.0

        assert point(check(act), "token ids").fix == advice.NO_TOKEN_IDS

    def test_token_ids_in_some_calls(self) -> None:
        def act() -> float:
            emit_call("a")
            emit_call("b", ids=False)
            return 1.0

        found = point(check(act, algorithm=Needing("token_ids")), "token ids")
        assert (found.level, found.text) == ("warning", "missing in 1 of 2 calls")

    def test_two_spans_of_one_call_are_one(self) -> None:
        def act() -> float:
            emit_call("a", ids=False)
            emit_call("a")
            return 1.0

        assert point(check(act), "token ids").text == "in all of 1 call"

    def test_log_probabilities_where_they_are_needed(self) -> None:
        report = check(lambda: emit_call() or 1.0, algorithm=Needing("logprobs"))
        assert point(report, "log-probabilities").level == "problem"
        assert "logprobs=True" in point(report, "log-probabilities").fix
        assert all(one.name != "log-probabilities" for one in check(lambda: emit_call()).points)


class TestTracer:
    def found(self, act: Callable[[], Any]) -> CheckPoint:
        return point(check(act), "tracer")

    def test_a_client_that_is_not_instrumented(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))
        found = self.found(lambda: send() or 1.0)
        assert found.level == "problem"
        assert (
            "the agent made 1 call of a language model at model.test, and the tracer dummy has recorded none"
            in (found.text)
        )
        assert "openai is not instrumented" in found.text
        assert '"instrument": ["openai"]' in found.fix
        assert "pip install 'lightning-tracer-otel[openai]'" in found.fix

    def test_a_client_that_no_instrumentation_is_known_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ollama", ModuleType("ollama"))
        assert "gateway" in self.found(lambda: send() or 1.0).fix

    def test_an_instrumentation_that_is_not_switched_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))
        monkeypatch.setattr(FakeOpenAIInstrumentor, "_instance", FakeOpenAIInstrumentor())
        assert "openai is not instrumented" in self.found(lambda: send() or 1.0).text

    def test_an_instrumented_client_whose_calls_are_not_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))
        self.instrument(monkeypatch)
        found = self.found(lambda: send() or 1.0)
        assert found.level == "problem"
        assert "though openai is instrumented" in found.text

    def test_calls_from_a_thread_without_the_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))
        self.instrument(monkeypatch)

        def act() -> float:
            thread = threading.Thread(target=send)
            thread.start()
            thread.join()
            return 1.0

        found = self.found(act)
        assert "outside of the rollout's context" in found.text
        assert "copy_context" in found.fix

    def test_a_call_whose_span_has_not_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))
        self.instrument(monkeypatch)
        kept: list[trace_api.Span] = []
        found = self.found(lambda: send() or kept.append(emitting_tracer().start_span("stream")) or 1.0)
        assert (found.level, found.fix.partition(",")[0]) == ("problem", "read streams to their end")
        kept[0].end()

    def test_calls_without_a_client(self) -> None:
        found = self.found(lambda: send() or 1.0)
        assert found.level == "problem"
        assert "without a client that can be instrumented" in found.text
        assert "gateway" in found.fix

    def test_calls_by_an_async_client(self) -> None:
        @rollout
        async def solve(task: Any, llm: LLM) -> float:
            transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer()))
            async with httpx.AsyncClient(transport=transport) as client:
                await client.post("http://model.test/v1/responses", json={"model": "asked"})
            return 1.0

        assert point(trainer().check(solve, "task"), "tracer").level == "problem"

    def test_an_imported_client_without_a_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "anthropic", ModuleType("anthropic"))
        found = self.found(lambda: 1.0)
        assert found.level == "warning"
        assert "anthropic is imported, and the tracer dummy would not see its calls" in found.text

    def test_who_needs_no_calls_is_only_warned(self) -> None:
        for algorithm, level in (
            (Needing(), "warning"),
            (Needing("rewards"), "warning"),
            (Needing("llm_calls"), "problem"),
        ):
            assert point(check(lambda: send() or 1.0, algorithm=algorithm), "tracer").level == level

    @pytest.mark.parametrize(
        "act",
        [
            lambda: send("/embeddings") or 1.0,
            lambda: send(status=500) or 1.0,
            lambda: (send(), emit_call(), 1.0)[-1],
            lambda: 1.0,
        ],
        ids=["no call of a model", "refused", "recorded", "nothing"],
    )
    def test_nothing_is_wrong(self, act: Callable[[], Any]) -> None:
        assert self.found(act).level == "ok"

    def test_what_is_instrumented_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instrument(monkeypatch)
        assert self.found(lambda: emit_call() or 1.0).text == "dummy; instrumented: openai"

    @staticmethod
    def instrument(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FakeOpenAIInstrumentor, "_instance", FakeOpenAIInstrumentor())
        monkeypatch.setattr(FakeOpenAIInstrumentor, "is_instrumented_by_opentelemetry", True)


class TestSpans:
    def test_a_call_that_was_not_recorded(self) -> None:
        def act() -> float:
            send()
            emit_call()
            send()
            return 1.0

        found = point(check(act), "spans")
        assert found.level == "problem"
        assert found.text.startswith("the agent made 2 calls of a language model, and 1 are recorded")

    def test_a_span_that_never_ends(self) -> None:
        kept: list[trace_api.Span] = []
        found = point(check(lambda: kept.append(emitting_tracer().start_span("stream")) or 1.0), "spans")
        assert (found.level, found.text.partition(" had")[0]) == ("warning", "1 span")
        kept[0].end()

    def test_a_span_of_another_trace(self) -> None:
        def act() -> float:
            elsewhere = trace_api.SpanContext(1, 2, is_remote=True, trace_flags=trace_api.TraceFlags(1))
            context = trace_api.set_span_in_context(trace_api.NonRecordingSpan(elsewhere))
            emitting_tracer().start_span("inner", context).end()
            return 1.0

        found = point(check(act), "spans")
        assert found.level == "warning"
        assert "1 of 2 spans belong to a trace that is not the rollout's, such as 'inner'" in found.text

    def test_spans_that_did_not_reach_the_store(self) -> None:
        watch = Watch(traced={"a" * 16})
        found = self.of(watch)
        assert (found.level, bool(found.fix)) == ("problem", True)
        assert found.text == "1 of 1 spans that were recorded did not reach the store"

    def test_spans_that_the_runner_could_not_store(self) -> None:
        assert (
            self.of(Watch(), lost_spans="3 spans could not be stored").text == "3 spans could not be stored"
        )

    @staticmethod
    def of(watch: Watch, **metadata: Any) -> CheckPoint:
        attempt = Attempt(
            rollout_id="ro",
            attempt_id="at",
            sequence_id=1,
            start_time=0,
            status="succeeded",
            metadata=metadata,
        )
        seen = Seen(
            agent=rollout(lambda task, resources: None),
            rollout=RolloutV2(rollout_id="ro", input=0, start_time=0, end_time=1, status="succeeded"),
            attempt=attempt,
            evidence=Evidence.of([Span.from_attributes(attributes={}, rollout_id="ro", attempt_id="at")]),
            watch=watch,
            resources={},
            tracer="dummy",
            adapter=None,
            needs=frozenset(),
            chosen=True,
        )
        (found,) = [one for one in check_points(seen) if one.name == "spans"]
        return found


class TestAdapter:
    def test_how_many_and_its_explanation(self) -> None:
        class Explaining(Few):
            def explain(self, source: Any, /) -> Explanation:
                return Explanation(len(source), 2, notes=("first note",))

        found = point(check(lambda: 1.0, adapter=Explaining(2)), "adapter")
        assert (found.level, found.text) == ("ok", "Explaining: 1 span -> 2 training samples")
        assert found.details == ["first note"]

    @pytest.mark.parametrize(("needs", "level"), [(("rewards",), "warning"), (("token_ids",), "problem")])
    def test_no_training_data(self, needs: tuple[Need, ...], level: str) -> None:
        found = point(check(lambda: 1.0, adapter=Few(0), algorithm=Needing(*needs)), "adapter")
        assert (found.level, bool(found.fix)) == (level, True)
        assert "0 training samples: Few found nothing in them" in found.text

    def test_an_adapter_that_fails(self) -> None:
        class Failing(Few):
            def explain(self, source: Any, /) -> Explanation:
                return Explanation(len(source), 1)

            def adapt(self, source: Any, /) -> list[int]:
                raise KeyError("role")

        found = point(check(lambda: 1.0, adapter=Failing(1)), "adapter")
        assert found.level == "problem"
        assert "Failing failed: KeyError" in found.text


class TestSettings:
    def texts(self, act: Callable[[], Any], **settings: Any) -> list[str]:
        report = check(act, **settings)
        found = [one for one in report.points if one.name == "settings"]
        assert all(one.fix for one in found if one.level == "warning")
        return [one.text for one in found if one.level == "warning"]

    def test_a_resource_that_the_agent_does_not_take(self) -> None:
        (text,) = self.texts(lambda: 1.0, initial_resources={"llm": MODEL, "prompt": PROMPT})
        assert text == "the agent takes no resource 'prompt' (PromptTemplate), so tuning it changes nothing"

    def test_an_endpoint_that_no_call_went_to(self) -> None:
        (text,) = self.texts(lambda: send(host="https://api.example.com/v1") or 1.0)
        assert text == "no call went to the endpoint of 'llm' (http://model.test/v1), but to api.example.com"

    def test_a_model_that_no_call_asked_for(self) -> None:
        (text,) = self.texts(lambda: send(model="other") or 1.0)
        assert text == "no call asked for the model of 'llm' (asked), but for other"

    def test_sampling_parameters_that_no_call_carried(self) -> None:
        llm = MODEL.model_copy(update={"sampling_parameters": {"temperature": 0.5, "top_p": 0.9}})
        (text,) = self.texts(lambda: send(temperature=0.5) or 1.0, initial_resources={"llm": llm})
        assert text == "no call carried top_p=0.9 of 'llm'"

    def test_what_the_tracer_says_of_its_own(self) -> None:
        class Idle(DummyTracer):
            def idle_settings(self) -> list[str]:
                return ["tracer.instrument names 'langchain', which was not imported"]

        assert self.texts(lambda: 1.0, tracer=Idle()) == [
            "tracer.instrument names 'langchain', which was not imported"
        ]

    def test_all_had_an_effect(self) -> None:
        llm = MODEL.model_copy(update={"sampling_parameters": {"temperature": 0.5}})
        assert self.texts(lambda: send(temperature=0.5) or 1.0, initial_resources={"llm": llm}) == []

    def test_the_whole_dictionary_takes_everything(self) -> None:
        @rollout
        def solve(task: Any, resources: dict[str, Any]) -> float:
            return 1.0

        report = trainer(initial_resources={"llm": MODEL, "prompt": PROMPT}).check(solve, "task")
        assert point(report, "settings").level == "ok"


class TestLog:
    def test_a_hook_that_fails_is_a_problem(self) -> None:
        class Failing(Hook):
            async def on_rollout_end(self, **_: Any) -> None:
                raise KeyError("oops")

        report = check(lambda: 1.0, hooks=Failing())
        found = point(report, "log")
        assert (found.level, bool(found.fix)) == ("problem", True)
        assert "hook Failing failed in on_rollout_end" in found.text
        assert report.status == "succeeded"

    def test_warnings_are_reported_though_logging_shows_less(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = logging.getLogger()
        before, handler = root.level, logging.StreamHandler(sys.stderr)
        root.addHandler(handler)
        root.setLevel(logging.ERROR)
        try:
            report = check(lambda: logging.getLogger("lightning_tracer_x").warning("not traced") or 1.0)
            assert root.level == logging.ERROR
            assert handler.level == logging.NOTSET
        finally:
            root.setLevel(before)
            root.removeHandler(handler)
        found = point(report, "log")
        assert (found.level, found.text) == ("warning", "not traced")
        assert "not traced" not in capsys.readouterr().err

    def test_what_others_log_is_theirs(self) -> None:
        report = check(lambda: logging.getLogger("mine").error("not yours") or 1.0)
        assert all(one.name != "log" for one in report.points)
