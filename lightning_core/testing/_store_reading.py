"""Store tests: queries, resources, workers, runs, statistics, and what is no one else's to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lightning_core.errors import StoreClosedError, UnserializableValueError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.store.encoding import encode_span
from lightning_core.types import LLM, AttemptStatus, PromptTemplate, RolloutConfig, RolloutStatus, Run

from ._store_setup import Clock, FakeClock, make_span, take


class ReadingTests:
    """What queries return, and that nothing returned is the store's own."""

    async def test_rollouts_are_filtered_sorted_and_paged(self, store: LightningStore) -> None:
        """Filters combine; the order is that of creation."""
        for number in range(8):
            await store.enqueue_rollout(
                number, "train" if number < 5 else "val", run_id="even" if number % 2 == 0 else "odd"
            )
        taken = await store.dequeue_rollouts(3)
        await store.update_rollout(taken[0].rollout_id, status="failed")
        await store.update_rollout(taken[1].rollout_id, status="succeeded")

        async def inputs(**filters: Any) -> list[int]:
            return [rollout.input for rollout in await store.query_rollouts(**filters)]

        final: list[RolloutStatus] = ["succeeded", "failed"]
        assert await inputs() == list(range(8))
        assert await inputs(descending=True, limit=3) == [7, 6, 5]
        assert await inputs(limit=2, offset=3) == [3, 4]
        assert await inputs(offset=6) == [6, 7]
        assert await inputs(limit=0) == []
        assert await inputs(status=final) == [0, 1]
        assert await inputs(status=[*final, "preparing"], descending=True, limit=2) == [2, 1]
        assert await inputs(status=[*final, "queuing"], offset=1, limit=3) == [1, 3, 4]
        assert await inputs(status=[]) == []
        assert await inputs(mode="val") == [5, 6, 7]
        assert await inputs(run_id="even", mode="train", status=["queuing"]) == [4]
        assert await inputs(run_id="even", descending=True, limit=2) == [6, 4]
        ids = [rollout.rollout_id for rollout in reversed(taken)]
        assert await inputs(rollout_ids=[*ids, "ro-none", ids[0]]) == [0, 1, 2]
        assert await inputs(rollout_ids=ids, status=final, descending=True) == [1, 0]
        assert await inputs(rollout_ids=[]) == []

    async def test_the_order_of_creation_does_not_depend_on_the_clock(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """A clock that jumps back changes no order."""
        ids: list[str] = []
        for number in range(3):
            rollout = await store.enqueue_rollout(number)
            ids.append(rollout.rollout_id)
            clock.advance(-10)
        assert [r.input for r in await store.query_rollouts()] == [0, 1, 2]
        assert [r.input for r in await store.query_rollouts(rollout_ids=ids)] == [0, 1, 2]
        assert [r.input for r in await store.dequeue_rollouts(3)] == [0, 1, 2]

    async def test_attempts_are_filtered_and_paged(self, store: LightningStore) -> None:
        """In the order of their ``sequence_id``."""
        rollout = await take(store)
        for _ in range(3):
            await store.start_attempt(rollout.rollout_id)

        async def numbers(**filters: Any) -> list[int]:
            found = await store.query_attempts(rollout.rollout_id, **filters)
            return [attempt.sequence_id for attempt in found]

        cancelled: list[AttemptStatus] = ["cancelled", "failed"]
        assert await numbers() == [1, 2, 3, 4]
        assert await numbers(status=cancelled) == [1, 2, 3]
        assert await numbers(status=cancelled, limit=1, offset=1) == [2]
        assert await numbers(status=[]) == []
        latest = await store.get_latest_attempt(rollout.rollout_id)
        assert latest is not None
        assert latest.sequence_id == 4

    async def test_the_store_keeps_nothing_of_what_it_is_given(self, store: LightningStore) -> None:
        """Trap 17: changing what was passed in changes nothing stored."""
        task, metadata, config = {"list": [1]}, {"list": [1]}, RolloutConfig(max_attempts=2)
        rollout = await store.enqueue_rollout(task, config=config, metadata=metadata)
        task["list"].append(2)
        metadata["list"].append(2)
        config.retry_condition.clear()
        taken = await store.dequeue_rollout()
        assert taken is not None
        span = make_span(taken, "a", attributes={"list": [1]})
        await store.add_span(span)
        span.attributes["list"] = "changed"
        noted = {"list": [1]}
        await store.update_attempt(taken.rollout_id, "latest", metadata=noted)
        noted["list"].append(2)
        found = await store.get_rollout_by_id(rollout.rollout_id)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert found is not None
        assert attempt is not None
        assert (found.input, found.metadata, len(found.config.retry_condition)) == (
            {"list": [1]},
            {"list": [1]},
            3,
        )
        assert attempt.metadata == {"list": [1]}
        assert (await store.query_spans(rollout.rollout_id))[0].attributes == {"list": [1]}

    async def test_nothing_returned_is_the_stores_own(self, store: LightningStore) -> None:
        """Trap 17: changing what was returned changes nothing stored."""
        await store.enqueue_rollout({"list": [1]}, metadata={"list": [1]})
        taken = await store.dequeue_rollout()
        assert taken is not None
        rollout_id = taken.rollout_id
        stored = await store.add_span(make_span(taken, "a", attributes={"list": [1]}))
        stored.attributes["list"] = "changed"
        attempt = await store.update_attempt(rollout_id, "latest", metadata={"list": [1]})
        attempt.metadata["list"].append(2)
        updated = await store.update_rollout(rollout_id, metadata={"more": [1]})
        updated.metadata["more"].append(2)
        for rollout in (taken, *await store.query_rollouts(), await store.get_rollout_by_id(rollout_id)):
            assert rollout is not None
            rollout.input["list"].append(2)
            rollout.metadata["list"].append(2)
            rollout.config.retry_condition.clear()
        spans = await store.query_spans(rollout_id)
        for span in spans:
            span.attributes["list"] = "changed"
        spans.clear()
        for found in await store.query_attempts(rollout_id):
            found.metadata["list"].append(2)
        rollout = await store.get_rollout_by_id(rollout_id)
        assert rollout is not None
        assert (rollout.input, rollout.metadata) == ({"list": [1]}, {"list": [1], "more": [1]})
        assert len(rollout.config.retry_condition) == 3
        assert (await store.query_spans(rollout_id))[0].attributes == {"list": [1]}
        assert (await store.query_attempts(rollout_id))[0].metadata == {"list": [1]}

    # Resources

    async def test_resources_have_versions_and_a_latest(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """An update is the next version of its id, and what was written last is the latest."""
        assert await store.get_latest_resources() is None
        assert await store.get_resources_by_id("none") is None
        llm = LLM(endpoint="http://localhost/v1", model="m", sampling_parameters={"temperature": 0.5})
        first = await store.add_resources({"llm": llm})
        created = clock.now
        clock.advance(5)
        second = await store.add_resources({"prompt": PromptTemplate(template="{x}")})
        assert first.resources_id != second.resources_id
        assert await store.get_latest_resources() == second
        updated = await store.update_resources(
            first.resources_id, {"llm": llm.model_copy(update={"model": "n"})}
        )
        assert (updated.version, updated.create_time, updated.update_time) == (2, created, clock.now)
        latest = await store.get_latest_resources()
        assert latest == updated
        found = (await store.get_resources_by_id(first.resources_id)) or first
        assert found == updated
        read = found.resources["llm"]
        assert isinstance(read, LLM)
        assert (read.model, read.sampling_parameters) == ("n", {"temperature": 0.5})
        read.sampling_parameters["temperature"] = 0.9
        assert await store.get_resources_by_id(first.resources_id) == updated
        named = await store.update_resources("mine", {"llm": llm})
        assert (named.resources_id, named.version) == ("mine", 1)
        assert (await store.statistics()).resources == 3

    # Workers, runs, statistics

    async def test_workers_are_busy_idle_or_unknown(self, store: LightningStore, clock: FakeClock) -> None:
        """Dequeuing and renewing are signs of life of a worker, as its own report is."""
        assert await store.query_workers() == []
        worker = await store.update_worker("a", heartbeat_stats={"cpu": 0.5})
        assert (worker.status, worker.last_heartbeat_time, worker.heartbeat_stats) == (
            "idle",
            clock.now,
            {"cpu": 0.5},
        )
        rollout = await take(store, "b", unresponsive_seconds=200)
        clock.advance(50)
        await store.update_worker("a")
        a, b = await store.query_workers()
        assert (a.worker_id, a.status, a.heartbeat_stats) == ("a", "idle", {"cpu": 0.5})
        assert (b.worker_id, b.status, b.current_rollout_id, b.current_attempt_id) == (
            "b",
            "busy",
            rollout.rollout_id,
            rollout.attempt.attempt_id,
        )
        clock.advance(20)
        assert [w.status for w in await store.query_workers()] == ["idle", "unknown"]
        await store.renew_leases("b", [(rollout.rollout_id, rollout.attempt.attempt_id)])
        assert [w.status for w in await store.query_workers()] == ["idle", "busy"]
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        done = (await store.query_workers())[1]
        assert (done.status, done.current_rollout_id) == ("idle", None)

    async def test_runs_are_kept_and_replaced(self, store: LightningStore) -> None:
        """Oldest first, by id, and as last saved."""
        first = Run(run_id="one", settings={"n": [1]})
        await store.save_run(first)
        await store.save_run(Run(run_id="two"))
        first.settings["n"].append(2)
        done = Run(
            run_id="one", status="succeeded", start_time=first.start_time, end_time=2.0, result={"a": None}
        )
        assert (await store.query_runs("one"))[0].settings == {"n": [1]}
        await store.save_run(done)
        assert [run.run_id for run in await store.query_runs()] == ["one", "two"]
        assert await store.query_runs("one") == [done]
        assert await store.query_runs("none") == []

    async def test_the_state_of_a_runs_algorithm_is_kept_and_replaced(self, store: LightningStore) -> None:
        """Whole, for each run, and apart from the run's own record."""
        assert await store.load_run_state("run") is None
        state: dict[str, Any] = {
            "step": 3,
            "best": 0.1,
            "whole": 1.0,
            "none": None,
            "flag": True,
            "text": "\u00e9\U0001f600\x00",
            "nested": [{"weights": [0.5, 1e-300, 2**62]}, []],
            "long": "x" * 200_000,
        }
        await store.save_run_state("run", state)
        assert await store.query_runs() == []
        await store.save_run(Run(run_id="run"))
        await store.save_run_state("other", {})
        loaded = await store.load_run_state("run")
        assert loaded == state
        assert loaded is not None
        assert [type(loaded[key]) for key in ("step", "whole", "flag")] == [int, float, bool]
        loaded["nested"].append(1)
        state["nested"].append(2)
        again = await store.load_run_state("run")
        assert again is not None
        assert len(again["nested"]) == 2
        await store.save_run_state("run", {"step": 4})
        await store.save_run(Run(run_id="run", status="succeeded"))
        assert await store.load_run_state("run") == {"step": 4}
        assert await store.load_run_state("other") == {}
        assert (await store.statistics()).runs == 1

    async def test_a_state_that_cannot_be_kept_is_refused(self, store: LightningStore) -> None:
        """The one before stays."""
        if store.capabilities.python_values:
            pytest.skip("this store keeps any Python value")
        await store.save_run_state("run", {"step": 1})
        with pytest.raises(UnserializableValueError, match=r"weights\[1\]"):
            await store.save_run_state("run", {"step": 2, "weights": [1, object()]})
        assert await store.load_run_state("run") == {"step": 1}

    async def test_any_text_is_kept(self, store: LightningStore) -> None:
        """Models write NUL and half a surrogate pair too, and tasks quote them."""
        text = "\x00 \ud800 \U0001f600 \u2028 'quoted' \\u0000"
        await store.enqueue_rollout({"text": text, text: 1}, metadata={"text": text})
        taken = await store.dequeue_rollout()
        assert taken is not None
        assert (taken.input, taken.metadata) == ({"text": text, text: 1}, {"text": text})
        await store.add_spans([make_span(taken, "a", attributes={"text": text})])
        done = await store.update_attempt(
            taken.rollout_id, "latest", status="failed", metadata={"error": text}
        )
        assert done.metadata == {"error": text}
        [span] = await store.query_spans(taken.rollout_id)
        [rollout] = await store.query_rollouts()
        [attempt] = await store.query_attempts(taken.rollout_id)
        assert (span.attributes, rollout.input, attempt.metadata) == (
            {"text": text},
            {"text": text, text: 1},
            {"error": text},
        )

    async def test_statistics_count_what_is_there(self, store: LightningStore, clock: FakeClock) -> None:
        """Through every kind of change, failed operations included."""
        assert (await store.statistics()).model_dump(exclude_defaults=True) == {}
        config = RolloutConfig(max_attempts=2, unresponsive_seconds=10)
        for number in range(6):
            await store.enqueue_rollout(number, config=config, run_id="run" if number < 4 else None)
        first, second, _ = await store.dequeue_rollouts(3, "w")
        await store.add_spans([make_span(first, "a"), make_span(first, "b"), make_span(first, "a")])
        await store.update_attempt(first.rollout_id, "latest", status="succeeded")
        await store.update_attempt(second.rollout_id, "latest", status="failed")
        await store.save_run(Run(run_id="run"))
        clock.advance(11)
        statistics = await store.statistics()
        assert statistics.rollouts == {"succeeded": 1, "requeuing": 2, "queuing": 3}
        assert (statistics.attempts, statistics.spans, statistics.workers, statistics.runs) == (3, 2, 1, 1)
        of_run = await store.statistics(run_id="run")
        assert of_run.rollouts == {"succeeded": 1, "requeuing": 2, "queuing": 1}
        assert (await store.statistics(run_id="none")).rollouts == {}

    # Closing and opening again

    async def test_a_closed_store_refuses_calls(self, store: LightningStore) -> None:
        """Closing again is harmless."""
        rollout = await store.enqueue_rollout(1)
        await store.close()
        await store.close()
        for call in (
            store.enqueue_rollout(1),
            store.dequeue_rollout(),
            store.get_rollout_by_id(rollout.rollout_id),
            store.query_rollouts(),
            store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0),
        ):
            with pytest.raises(StoreClosedError):
                await call

    async def test_what_was_acknowledged_is_there_after_opening_again(
        self,
        make_store: Callable[[Clock], LightningStore],
        reopen: Callable[[LightningStore, Clock], LightningStore] | None,
        clock: FakeClock,
    ) -> None:
        """Everything, with the queue in order, the leases running and the sequence ids counting on."""
        if reopen is None:
            pytest.skip("this store is not opened again")
        store = make_store(clock)
        assert store.capabilities.durable
        old = await store.start_rollout("old", config=RolloutConfig(max_losses=0), idempotency_key="old")
        await store.add_span(make_span(old, "a"))
        await store.update_attempt(old.rollout_id, "latest", status="failed", reason="infrastructure")
        await store.save_run(Run(run_id="old", status="failed", end_time=clock.now))
        await store.save_run_state("old", {"step": 1})
        clock.advance(1)
        assert (await store.vacuum(before=clock.now)).rollouts == {"failed": 1}
        await store.enqueue_rollouts([EnqueueRequest(input=n, idempotency_key=str(n)) for n in range(3)])
        failed = await store.start_rollout("failed")
        await store.update_attempt(failed.rollout_id, "latest", status="failed", reason="no_resources")
        await store.enqueue_rollout(3, config=RolloutConfig(max_attempts=2, unresponsive_seconds=10))
        taken = (await store.dequeue_rollouts(4, "w", request_id="r"))[3]
        await store.add_span(make_span(taken, "a"))
        await store.add_encoded_spans([encode_span(make_span(taken, "0"))])
        for rollout in await store.query_rollouts(limit=3):
            await store.update_rollout(rollout.rollout_id, status="requeuing")
        await store.add_resources({"prompt": PromptTemplate(template="{x}")})
        await store.save_run(Run(run_id="run"))
        await store.save_run_state("run", {"step": [1, None]})

        async def everything(store: LightningStore) -> list[Any]:
            return [
                await store.query_rollouts(),
                await store.query_attempts(taken.rollout_id),
                await store.query_attempts(failed.rollout_id),
                await store.query_spans(taken.rollout_id),
                await store.get_latest_resources(),
                await store.query_runs(),
                await store.load_run_state("run"),
                await store.load_run_state("old"),
                await store.query_workers(),
                await store.statistics(),
            ]

        before = await everything(store)
        await store.close()
        again = reopen(store, clock)
        assert await everything(again) == before
        assert (await again.enqueue_rollout("new", idempotency_key="0")).input == 0
        assert [r.input for r in await again.dequeue_rollouts(1, "w", request_id="r")] == [3]
        assert (await again.add_span(make_span(taken, "b"))).sequence_id == 3
        clock.advance(11)
        assert [rollout.input for rollout in await again.dequeue_rollouts(9)] == [0, 1, 2, 3]
        await again.close()
