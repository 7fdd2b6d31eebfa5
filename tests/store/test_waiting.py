"""The waiting room of stores whose data others may change: who is woken, and that no announcement is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightning_core.store.waiting import Waiter, WaitingRoom, wait_for_ends, wait_for_work

PATIENCE = 20


class Queue:
    """A store's queue: takes as the store does, and lets a test act between two steps."""

    def __init__(self) -> None:
        self.room = WaitingRoom()
        self.items: list[str] = []
        self.takes = 0
        self.before_take: Callable[[], Awaitable[None]] | None = None

    async def take(self) -> list[str]:
        self.takes += 1
        if self.before_take is not None:
            await self.before_take()
        return [self.items.pop(0)] if self.items else []

    def put(self, *items: str) -> None:
        self.items += items
        self.room.announce(queued=[None] * len(items))

    def start(self, wait: float = 10 * PATIENCE, **others: Any) -> asyncio.Task[list[str]]:
        return asyncio.create_task(wait_for_work(self.take, wait, self.room, self.room.enter, **others))


async def settle() -> None:
    """Let everything run that can run without a wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def woken(*waiters: Waiter) -> list[bool]:
    """Which of them have been woken."""
    await settle()
    return [waiter._event.is_set() for waiter in waiters]


def enter(room: WaitingRoom, **settings: Any) -> Waiter:
    waiter = Waiter(**settings)
    room.enter(waiter)
    return waiter


# Work


async def test_as_many_are_woken_as_there_is_work_and_those_first_who_came_first():
    room = WaitingRoom()
    waiters = [enter(room) for _ in range(4)]
    room.announce(queued=[None, "run"])
    assert await woken(*waiters) == [True, True, False, False]
    room.announce(queued=["run"])
    assert await woken(*waiters) == [True, True, True, False]
    room.announce(ended=["ro"])
    assert await woken(*waiters) == [True, True, True, False]


async def test_who_waits_for_a_run_is_woken_for_that_run_alone():
    room = WaitingRoom()
    mine, others = enter(room, run_id="mine"), enter(room, run_id="other")
    room.announce(queued=["other", None])
    assert await woken(mine, others) == [False, True]
    room.announce(queued=["mine"])
    assert await woken(mine, others) == [True, True]


async def test_one_request_wakes_all_who_wait_with_it_and_keeps_no_work_from_others():
    room = WaitingRoom()
    again, same, other = (enter(room, request=("w", name)) for name in ("r", "r", "s"))
    room.announce(requests=[("w", "r")])
    assert await woken(again, same, other) == [True, True, False]
    room.leave(other)
    again, same = (enter(room, request=("w", "r")) for _ in range(2))
    other = enter(room)
    room.announce(queued=[None, None])
    assert await woken(again, same, other) == [True, False, True]
    room.announce(requests=[("w", "r")])
    assert await woken(same) == [True]


async def test_who_is_woken_and_leaves_hands_the_work_on():
    room = WaitingRoom()
    first, second, third = (enter(room) for _ in range(3))
    room.announce(queued=[None])
    assert await woken(first, second, third) == [True, False, False]
    room.leave(first)
    assert await woken(second, third) == [True, False]
    # It has come back to look, so it is told again of what comes now, and has nothing to hand on.
    room.enter(second)
    room.leave(second)
    assert await woken(third) == [False]


async def test_work_of_unknown_amount_wakes_all_who_wait_for_it():
    room = WaitingRoom()
    workers = [enter(room, run_id=run_id) for run_id in (None, "run")]
    end = enter(room, pending=["ro"])
    room.wake_workers()
    assert await woken(*workers, end) == [True, True, False]
    room.wake_all()
    assert await woken(end) == [True]


async def test_a_loop_that_was_closed_while_it_waited_keeps_nobody_from_being_woken():
    room = WaitingRoom()

    async def come() -> None:
        enter(room, pending=["ro"])

    def elsewhere() -> None:
        asyncio.run(come())

    await asyncio.to_thread(elsewhere)
    here = enter(room, pending=["ro"])
    room.announce(ended=["ro"])
    assert await woken(here) == [True]


async def test_taking_waits_for_work_and_no_longer_than_it_may():
    queue = Queue()
    queue.put("a")
    assert await wait_for_work(queue.take, 0.0, queue.room, queue.room.enter) == ["a"]
    assert await wait_for_work(queue.take, 0.0, queue.room, queue.room.enter) == []
    assert await wait_for_work(queue.take, 0.01, queue.room, queue.room.enter) == []
    first, second = queue.start(), queue.start()
    await settle()
    queue.put("b")
    assert await asyncio.wait_for(first, PATIENCE) == ["b"]
    queue.put("c")
    assert await asyncio.wait_for(second, PATIENCE) == ["c"]
    assert not queue.room.occupied.is_set()


async def test_work_that_comes_while_one_registers_is_taken():
    """Nobody is woken for it: it was announced before the registration."""
    queue = Queue()

    async def put_once() -> None:
        if queue.takes == 2:
            queue.items.append("early")

    queue.before_take = put_once
    assert await asyncio.wait_for(queue.start(), PATIENCE) == ["early"]


async def test_who_is_woken_for_what_is_gone_waits_on():
    queue = Queue()
    waiting = queue.start()
    await settle()
    queue.room.announce(queued=[None])
    await settle()
    assert not waiting.done()
    queue.put("a")
    assert await asyncio.wait_for(waiting, PATIENCE) == ["a"]


@pytest.mark.parametrize("when", ["woken", "taking"])
async def test_a_cancelled_wait_for_work_hands_on_what_it_was_woken_for(when: str):
    queue = Queue()
    first = queue.start()
    await settle()
    second = queue.start()
    await settle()
    taking = asyncio.Event()
    if when == "taking":

        async def hold() -> None:
            if asyncio.current_task() is first:
                taking.set()
                await asyncio.Event().wait()

        queue.before_take = hold
    queue.put("a")
    if when == "taking":
        await asyncio.wait_for(taking.wait(), PATIENCE)
    first.cancel()
    assert await asyncio.wait_for(second, PATIENCE) == ["a"]
    await asyncio.wait([first])
    assert first.cancelled()


# Ends


async def test_enough_ends_wake_and_others_do_not():
    room = WaitingRoom()
    all_of_them, two = enter(room, pending=["a", "b", "c"]), enter(room, pending=["a", "b", "c"], allowed=1)
    assert sorted(room.awaited()) == ["a", "b", "c"]
    room.announce(queued=[None], ended=["a", "unknown"])
    assert await woken(all_of_them, two) == [False, False]
    room.announce(ended=["b"])
    assert await woken(all_of_them, two) == [False, True]
    assert room.pending(all_of_them) == ["c"]
    room.leave(two)
    room.announce(ended=["c"])
    assert await woken(all_of_them) == [True]


async def test_ends_that_were_seen_and_ends_that_were_announced_count_together():
    """One before anybody could announce it, another after the look: each alone misses one of the two."""
    room, looks = WaitingRoom(), 0

    async def find_unfinished(asked: list[str]) -> set[str]:
        nonlocal looks
        looks += 1
        seen = set(asked) - {"early"}
        room.announce(ended=["late"])
        return seen

    await asyncio.wait_for(
        wait_for_ends(find_unfinished, ["early", "late"], room, room.enter, allowed=0), PATIENCE
    )
    assert looks == 1
    assert room.awaited() == []
    assert not room.occupied.is_set()


async def test_a_wait_for_ends_looks_again_when_it_is_woken_and_gives_up_in_time():
    room, open_, looks = WaitingRoom(), {"a", "b"}, 0

    async def find_unfinished(asked: list[str]) -> set[str]:
        nonlocal looks
        looks += 1
        return open_ & set(asked)

    waiting = asyncio.create_task(wait_for_ends(find_unfinished, ["a", "b"], room, room.enter))
    await settle()
    assert looks == 1
    open_.discard("a")
    room.wake_all()
    await settle()
    assert looks == 2
    assert not waiting.done()
    assert room.awaited() == ["b"]
    open_.clear()
    room.wake_all()
    await asyncio.wait_for(waiting, PATIENCE)
    open_.add("a")
    await asyncio.wait_for(wait_for_ends(find_unfinished, ["a"], room, room.enter, give_up=0.0), PATIENCE)
    assert room.awaited() == []


async def test_a_cancelled_wait_for_ends_is_forgotten():
    room = WaitingRoom()

    async def find_unfinished(asked: list[str]) -> set[str]:
        return set(asked)

    waiting = asyncio.create_task(wait_for_ends(find_unfinished, ["a"], room, room.enter))
    stays = asyncio.create_task(wait_for_ends(find_unfinished, ["a"], room, room.enter))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert room.awaited() == ["a"]
    room.announce(ended=["a"])
    await asyncio.wait_for(stays, PATIENCE)
    assert not room.occupied.is_set()
