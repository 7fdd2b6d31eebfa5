"""Runner tests: what an agent returns or raises, and what becomes of the rollout."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from lightning_core.emitter import emit_reward, find_final_reward
from lightning_core.errors import RolloutTimeoutError
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import RolloutConfig, Span, SpanNames

from ._runner_setup import AsyncAgent, MakeRunner, Session, SyncAgent, rewards

__all__ = ["OutcomeTests"]


class _Scalar:
    """A number as numpy has them."""

    ndim = 0

    def item(self) -> float:
        return 0.5

    def __repr__(self) -> str:
        return "numpy.float64(0.5)"


async def _never(task: Any, resources: Any) -> None:
    await asyncio.Event().wait()


class OutcomeTests:
    """Every attempt ends in a final state, with a reason unless it succeeded."""

    @pytest.mark.parametrize(
        ("result", "stored"),
        [(None, []), (1, [1.0]), (True, [1.0]), (False, [0.0]), (0.25, [0.25]), (_Scalar(), [0.5])],
        ids=repr,
    )
    @pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
    async def test_a_number_is_a_reward_and_none_is_none(
        self, session: Session, result: Any, stored: list[float], sync: bool
    ) -> None:
        """Trap 18: ints, bools and numpy's numbers count."""

        async def give(task: Any, resources: Any) -> Any:
            return result

        agent = SyncAgent(lambda task, resources: result) if sync else AsyncAgent(give)
        done, attempt = await session.run(agent)
        assert (done.status, attempt.status, attempt.reason) == ("succeeded", "succeeded", None)
        assert await rewards(session.store, done.rollout_id) == stored

    @pytest.mark.parametrize(
        "result", ["a string", float("nan"), float("inf"), {"reward": 1}, [1.0], object()]
    )
    async def test_an_unusable_result_is_the_agents_error(self, session: Session, result: Any) -> None:
        """Trap 18: NaN must not reach a training batch; a string is no reward. What was traced is kept."""

        async def give(task: Any, resources: Any) -> Any:
            emit_reward(0.5)
            return result

        done, attempt = await session.run(AsyncAgent(give))
        assert (done.status, attempt.reason) == ("failed", "agent_error")
        assert attempt.metadata["error"]
        assert await rewards(session.store, done.rollout_id) == [0.5]

    async def test_a_reward_both_emitted_and_returned_is_stored_once(self, session: Session) -> None:
        """Trap 18."""

        async def give(task: Any, resources: Any) -> float:
            emit_reward(0.7)
            return 0.7

        done, _ = await session.run(AsyncAgent(give))
        assert await rewards(session.store, done.rollout_id) == [0.7]

    async def test_a_returned_reward_comes_after_those_that_were_emitted(self, session: Session) -> None:
        """It is the final one."""

        async def give(task: Any, resources: Any) -> float:
            emit_reward(0.1)
            emit_reward(0.2)
            return 0.9

        done, _ = await session.run(AsyncAgent(give))
        assert await rewards(session.store, done.rollout_id) == [0.1, 0.2, 0.9]
        assert find_final_reward(await session.store.query_spans(done.rollout_id)) == 0.9

    async def test_returned_spans_are_stored_under_the_attempt_and_not_doubled(
        self, session: Session
    ) -> None:
        """Whatever ids they had; those that were traced already are the same evidence."""
        mine = Span.from_attributes(name="mine", attributes={"a": [1]}, sequence_id=77)

        async def give(task: Any, resources: Any) -> list[Any]:
            return [emit_reward(0.5), mine]

        done, attempt = await session.run(AsyncAgent(give))
        mine.attributes["a"] = "changed later"
        spans = [
            span
            for span in await session.store.query_spans(done.rollout_id)
            if span.name in ("mine", SpanNames.REWARD.value)
        ]
        assert [(span.name, span.attempt_id) for span in spans] == [
            (SpanNames.REWARD.value, attempt.attempt_id),
            ("mine", attempt.attempt_id),
        ]
        assert spans[0].sequence_id < spans[1].sequence_id < 77
        assert spans[1].attributes == {"a": [1]}

    @pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
    async def test_what_the_agent_raises_fails_the_rollout(self, session: Session, sync: bool) -> None:
        """With the error and its traceback; the runner goes on."""

        def fail(task: Any, resources: Any) -> float:
            if task == "bad":
                raise KeyError("no such tool")
            return 1.0

        async def fail_async(task: Any, resources: Any) -> float:
            return fail(task, resources)

        agent = SyncAgent(fail) if sync else AsyncAgent(fail_async)
        bad = await session.store.enqueue_rollout("bad")
        good, _ = await session.run(agent, "good", number=2)
        done, attempt = await session.read(bad.rollout_id)
        assert (done.status, attempt.status, attempt.reason) == ("failed", "failed", "agent_error")
        assert "no such tool" in attempt.metadata["error"]
        assert "in fail" in attempt.metadata["traceback"]
        assert good.status == "succeeded"

    @pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
    async def test_an_agent_that_exits_ends_its_rollout_and_not_the_worker(
        self, session: Session, sync: bool
    ) -> None:
        """``sys.exit`` is no ``Exception``."""

        def leave(task: Any, resources: Any) -> float:
            raise SystemExit(2)

        async def leave_async(task: Any, resources: Any) -> float:
            raise SystemExit(2)

        done, attempt = await session.run(SyncAgent(leave) if sync else AsyncAgent(leave_async))
        assert (done.status, attempt.reason) == ("failed", "agent_error")

    async def test_an_agent_that_raises_cancelled_error_does_not_succeed(self, session: Session) -> None:
        """Trap 1: ``CancelledError`` is no ``Exception``."""

        async def cancel(task: Any, resources: Any) -> float:
            raise asyncio.CancelledError

        done, attempt = await session.run(AsyncAgent(cancel))
        assert (done.status, attempt.status, attempt.reason) == ("cancelled", "cancelled", "cancelled")

    @pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
    async def test_the_time_limit_ends_the_attempt(self, session: Session, sync: bool) -> None:
        """As ``timeout``, though a sync agent goes on in its thread."""
        release = threading.Event()

        def block(task: Any, resources: Any) -> float:
            release.wait(30)
            return 1.0

        try:
            done, attempt = await session.run(
                SyncAgent(block) if sync else AsyncAgent(_never), config=RolloutConfig(timeout_seconds=0.05)
            )
        finally:
            release.set()
        assert (done.status, attempt.status, attempt.reason) == ("failed", "timeout", "timeout")

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(TimeoutError("of a tool"), "agent_error"), (RolloutTimeoutError("over"), "timeout")],
        ids=["its own", "the rollout's"],
    )
    async def test_an_agents_own_timeout_is_its_own_error(
        self, session: Session, error: Exception, reason: str
    ) -> None:
        """Only the rollout's time limit is a ``timeout``."""

        async def fail(task: Any, resources: Any) -> float:
            raise error

        done, attempt = await session.run(AsyncAgent(fail), config=RolloutConfig(timeout_seconds=30))
        assert (done.status, attempt.reason) == ("failed", reason)

    async def test_missing_resources_fail_the_rollout(
        self, make_runner: MakeRunner, session: Session
    ) -> None:
        """Trap 2: it must not stay ``preparing``."""

        async def give(task: Any, resources: Any) -> float:
            return 1.0

        done, attempt = await Session(InMemoryLightningStore(), make_runner).run(AsyncAgent(give))
        assert (done.status, attempt.status, attempt.reason) == ("failed", "failed", "no_resources")
        assert attempt.metadata["error"]
        done, attempt = await session.run(AsyncAgent(give), resources_id="rs-gone")
        assert (done.status, attempt.reason) == ("failed", "no_resources")
        assert "rs-gone" in attempt.metadata["error"]

    async def test_each_rollout_has_resources_of_its_own(self, session: Session) -> None:
        """What an agent does to them reaches no other, nor the store."""
        seen: list[str] = []

        async def change(task: Any, resources: Any) -> None:
            seen.append(resources["llm"].model)
            resources["llm"].model = "changed"

        await session.run(AsyncAgent(change), 1, 2, 3)
        assert seen == ["test"] * 3

    @pytest.mark.parametrize("reason", ["agent_error", "infrastructure"])
    async def test_retry_is_per_reason(self, make_runner: MakeRunner, reason: str) -> None:
        """What broke around the agent is worth another attempt here, and the agent's own error is not."""

        class Fragile(InMemoryLightningStore):
            broken = reason == "infrastructure"

            async def get_latest_resources(self) -> Any:
                if self.broken:
                    self.broken = False
                    raise RuntimeError("the store has a fault")
                return await super().get_latest_resources()

        calls = 0

        async def fail_at_first(task: Any, resources: Any) -> float:
            nonlocal calls
            calls += 1
            if reason == "agent_error" and calls == 1:
                raise RuntimeError("the agent has a fault")
            return 1.0

        session = Session(Fragile(), make_runner)
        await session.store.add_resources({})
        config = RolloutConfig(max_attempts=2, retry_condition=["infrastructure", "unresponsive"])
        retried = reason == "infrastructure"
        done, _ = await session.run(AsyncAgent(fail_at_first), config=config, number=2 if retried else 1)
        attempts = await session.store.query_attempts(done.rollout_id)
        wanted = ["infrastructure", None] if retried else ["agent_error"]
        assert [attempt.reason for attempt in attempts] == wanted
        assert done.status == ("succeeded" if retried else "failed")
