"""How a run finds again what it has made: the same requests get the same rollouts, whatever happened in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core import LLM, InMemoryLightningStore, PromptTemplate
from lightning_core.errors import ResumeError, UnserializableValueError
from lightning_core.store.base import EnqueueRequest, StoreCapabilities
from lightning_core.trainer.keys import RunKeys, successor
from lightning_core.trainer.scope import RunStore, run_store
from lightning_core.types import FailureReason, RolloutConfig, RolloutV2


class Durable(InMemoryLightningStore):
    """Plays a store that outlives its process; a crash is then a new view of it."""

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(durable=True, python_values=True)


inputs = st.sampled_from([0, 1, 1.0, True, "1", None, [1], {"a": 1, "b": [2]}])
steps = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(inputs, min_size=1, max_size=4)),
    st.tuples(st.just("own key"), st.sampled_from(["x", "y", "1/0/x"])),
    st.tuples(st.just("resources"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("checkpoint"), st.none()),
)
programs = st.lists(steps, max_size=12)


async def play(
    program: Sequence[tuple[str, Any]], view: RunStore, start: int, stop: int
) -> tuple[dict[int, list[str]], int]:
    """Run a deterministic algorithm from one of its steps to another.

    Returns:
        The ids that each step got, and where the last checkpoint is.
    """
    got: dict[int, list[str]] = {}
    for number in range(start, stop):
        what, value = program[number]
        if what == "enqueue":
            rollouts = await view.enqueue_rollouts([EnqueueRequest(input=each) for each in value])
            got[number] = [rollout.rollout_id for rollout in rollouts]
        elif what == "own key":
            got[number] = [(await view.enqueue_rollout(number, idempotency_key=value)).rollout_id]
        elif what == "resources":
            update = await view.add_resources({"prompt": PromptTemplate(template=value)})
            rollout = await view.enqueue_rollout("named", resources_id=update.resources_id)
            got[number] = [update.resources_id, rollout.rollout_id]
        else:
            await view.save_run_state(view.run_id, {"state": {"next": number + 1}})
            start = number + 1
    return got, start


async def reopen(store: Durable, run_id: str) -> tuple[RunStore, int]:
    saved = await store.load_run_state(run_id) or {}
    return run_store(store, run_id, saved, resumed=True), saved.get("state", {"next": 0})["next"]


@given(programs, st.lists(st.integers(0, 12), max_size=4))
def test_a_replay_after_any_crashes_gets_the_same_and_never_more(
    program: list[tuple[str, Any]], crashes: list[int]
):
    async def scenario() -> None:
        calm, stormy = Durable(), Durable()
        expected, _ = await play(program, run_store(calm, "run-1"), 0, len(program))
        # Another run of the same algorithm in the same store.
        foreign, _ = await play(program, run_store(stormy, "run-2"), 0, len(program))
        first: dict[int, list[str]] = {}
        for crash in [*crashes, len(program)]:
            view, start = await reopen(stormy, "run-1")
            got, _ = await play(program, view, start, max(start, min(crash, len(program))))
            for number, ids in got.items():
                assert first.setdefault(number, ids) == ids
        assert first.keys() == expected.keys()

        def pattern(ids: dict[int, list[str]]) -> list[int]:
            """Which of the ids are the same, whatever they are."""
            flat = [each for number in sorted(ids) for each in ids[number]]
            return [flat.index(each) for each in flat]

        assert pattern(first) == pattern(expected)
        # Neither twice what was there, nor another run's.
        mine = await stormy.query_rollouts(run_id="run-1")
        assert len(mine) == len(await calm.query_rollouts(run_id="run-1"))
        everything = [{each for ids in run.values() for each in ids} for run in (first, foreign)]
        assert not everything[0] & everything[1]
        asked = {rollout.rollout_id: rollout.input for rollout in await stormy.query_rollouts(run_id="run-1")}
        for number, (what, value) in enumerate(program):
            if what == "enqueue":
                assert [asked[each] for each in first[number]] == value

    asyncio.run(scenario())


@given(st.permutations(["a", "a", "b", "c"]), st.permutations(["a", "a", "b", "c"]))
def test_tasks_of_one_algorithm_may_ask_in_another_order(before: list[str], after: list[str]):
    async def scenario() -> None:
        store = Durable()
        ids: list[dict[str, set[str]]] = []
        for resumed, order in ((False, before), (True, after)):
            view = run_store(store, "run-1", resumed=resumed)
            got: dict[str, set[str]] = {}
            for value in order:
                got.setdefault(value, set()).add((await view.enqueue_rollout(value)).rollout_id)
            ids.append(got)
        assert ids[0] == ids[1]

    asyncio.run(scenario())


async def finish(store: Durable, rollout: RolloutV2, reason: FailureReason | None) -> None:
    """End a rollout as a runner does."""
    (taken,) = await store.dequeue_rollouts(1, "worker")
    assert taken.rollout_id == rollout.rollout_id
    ids = taken.rollout_id, taken.attempt.attempt_id
    if reason is None:
        await store.update_attempt(*ids, status="succeeded")
        return
    status = reason if reason in ("timeout", "unresponsive", "cancelled") else "failed"
    await store.update_attempt(*ids, status=status, reason=reason, metadata={"error": "it ended"})


@given(
    st.lists(
        st.sampled_from(
            [
                None,
                *("agent_error", "timeout", "no_resources"),
                *("unresponsive", "infrastructure", "cancelled"),
            ]
        ),
        max_size=6,
    )
)
def test_what_a_crash_has_ended_runs_again_until_it_has_an_end_of_its_own(
    endings: list[FailureReason | None],
):
    """One rollout, one ending a life of the process; from the first real one on, nothing new is made."""

    async def scenario() -> None:
        store = Durable()
        seen: list[str] = []
        done: str | None = None
        for life, reason in enumerate(endings):
            view = run_store(store, "run-1", resumed=life > 0)
            rollout = await view.enqueue_rollout("task", config=RolloutConfig(max_losses=0))
            if done is not None:
                assert rollout.rollout_id == done
                continue
            assert rollout.rollout_id not in seen
            assert rollout.status == "queuing"
            seen.append(rollout.rollout_id)
            await finish(store, rollout, reason)
            if reason not in ("unresponsive", "infrastructure", "cancelled"):
                done = rollout.rollout_id
        assert len(await store.query_rollouts()) == len(seen)

    asyncio.run(scenario())


async def test_an_own_key_means_one_rollout_for_the_rest_of_the_process():
    store, config = Durable(), RolloutConfig(max_losses=0)
    first = await run_store(store, "run-1").enqueue_rollout("task", config=config, idempotency_key="mine")
    await finish(store, first, "infrastructure")
    view = run_store(store, "run-1", resumed=True)
    second = await view.enqueue_rollout("task", config=config, idempotency_key="mine")
    assert second.rollout_id != first.rollout_id
    await finish(store, second, "infrastructure")
    again = await view.enqueue_rollout("task", config=config, idempotency_key="mine")
    assert again.rollout_id == second.rollout_id


async def test_a_rollout_that_the_algorithm_has_cancelled_itself_stays_cancelled():
    store = Durable()
    ids: list[list[str]] = []
    for resumed in (False, True):
        view = run_store(store, "run-1", resumed=resumed)
        rollouts = [await view.enqueue_rollout(task) for task in ("running", "waiting")]
        ids.append([rollout.rollout_id for rollout in rollouts])
        if not resumed:
            await view.dequeue_rollouts(1, "worker")
            for rollout in rollouts:
                await view.update_rollout(rollout.rollout_id, status="cancelled")
    assert ids[0] == ids[1]


async def test_a_rollout_that_is_started_without_a_key_is_always_a_new_one():
    store = Durable()
    started = [
        (await run_store(store, "run-1", resumed=True).start_rollout("task")).rollout_id for _ in range(2)
    ]
    assert started[0] != started[1]
    keyed = [
        (await run_store(store, "run-1", resumed=True).start_rollout("task", idempotency_key="k")).rollout_id
        for _ in range(2)
    ]
    assert keyed[0] == keyed[1]


async def test_own_keys_of_two_runs_do_not_meet_in_any_store():
    store = InMemoryLightningStore()
    one, other = [
        await run_store(store, run_id).enqueue_rollout("task", idempotency_key="k")
        for run_id in ("run-1", "run-2")
    ]
    assert one.rollout_id != other.rollout_id


async def test_a_store_that_forgets_gets_no_keys():
    rollout = await run_store(InMemoryLightningStore(), "run-1").enqueue_rollout("task")
    assert rollout.idempotency_key is None


async def test_a_model_server_at_another_address_makes_no_other_resources():
    store = Durable()
    ids: list[str] = []
    for port in (1, 2):
        llm = LLM(endpoint=f"http://localhost:{port}/v1", model="m", api_key=str(port))
        update = await run_store(store, "run-1", resumed=port > 1).add_resources({"llm": llm})
        ids.append(update.resources_id)
        latest = await store.get_resources_by_id(update.resources_id)
        assert latest is not None
        assert latest.resources == {"llm": llm}
    assert ids[0] == ids[1]


async def test_the_latest_resources_are_those_of_the_run():
    store = Durable()
    views = [run_store(store, f"run-{number}") for number in range(2)]
    for number, view in enumerate(views):
        await view.add_resources({"prompt": PromptTemplate(template=str(number))})
    for number, view in enumerate(views):
        latest = await view.get_latest_resources()
        assert latest is not None
        assert latest.resources == {"prompt": PromptTemplate(template=str(number))}


async def test_an_input_that_no_json_holds_is_refused_by_the_store_and_not_by_the_key():
    class Strict(Durable):
        capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(durable=True)

    with pytest.raises(UnserializableValueError, match=r"input\.task"):
        await run_store(Strict(), "run-1").enqueue_rollout({"task": {1, 2}})


async def test_a_run_that_another_process_has_taken_over_takes_and_gives_no_more_work():
    view = run_store(Durable(), "run-1")
    view.lose("run run-1 was taken over")
    for refused in (
        view.enqueue_rollout("task"),
        view.start_rollout("task"),
        view.dequeue_rollouts(),
        view.add_resources({}),
        view.save_run_state("run-1", {}),
    ):
        with pytest.raises(ResumeError, match="taken over"):
            await refused


async def test_a_view_in_another_process_makes_the_same_names_and_the_same_checkpoints():
    """An algorithm in another process has a client of the view, which may send what it asks for twice."""
    store = Durable()
    here = run_store(store, "run-1")
    there = here.elsewhere()(here)
    first = await there.enqueue_rollout("task")
    again = await there.add_resources({"prompt": PromptTemplate(template="a")})
    await there.save_run_state("run-1", {"state": {"a": 1}})
    await here.update_resources("elsewhere", {})
    saved = await store.load_run_state("run-1")
    assert saved is not None
    assert (saved["step"], saved["state"], saved["resources_id"]) == (1, {"a": 1}, again.resources_id)
    assert saved["latest_resources_id"] == "elsewhere"
    second = await there.enqueue_rollout("task")
    assert first.rollout_id != second.rollout_id
    back = run_store(store, "run-1", saved, resumed=True)
    assert (await back.elsewhere()(back).enqueue_rollout("task")).rollout_id == second.rollout_id


def test_a_key_says_run_step_content_and_number():
    keys = RunKeys("run-1", 3)
    request = EnqueueRequest(input="task")
    first, second = keys.rollout(request), keys.rollout(request)
    assert first is not None
    assert second is not None
    run, step, digest, number = first.split("/")
    assert (run, step, number) == ("run-1", "3", "0")
    assert second == f"run-1/3/{digest}/1"
    assert successor(successor(first)) == f"run-1~2/3/{digest}/0"
    keys.next_step()
    assert keys.rollout(request) == f"run-1/4/{digest}/0"
