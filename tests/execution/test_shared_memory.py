"""The shared-memory strategy: it ends when the algorithm ends, and nothing hangs when something breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from lightning_core import InMemoryLightningStore
from lightning_core.errors import ConfigurationError, ExecutionError
from lightning_core.execution import SharedMemoryExecutionStrategy
from lightning_core.execution.event import StopEvent


async def until(event: Any) -> None:
    await event.wait_async()


async def test_execute_works_inside_a_running_event_loop():
    """Notebooks run one."""
    seen: list[str] = []

    async def algorithm(store: Any, event: Any) -> None:
        seen.append("algorithm")

    async def runner(store: Any, number: int, event: Any) -> None:
        seen.append(f"runner {number}")
        await until(event)

    SharedMemoryExecutionStrategy(2).execute(algorithm, runner, InMemoryLightningStore())
    assert sorted(seen) == ["algorithm", "runner 0", "runner 1"]


def test_an_error_of_the_algorithm_is_raised_as_it_is():
    async def algorithm(store: Any, event: Any) -> None:
        raise KeyError("lost")

    async def runner(store: Any, number: int, event: Any) -> None:
        await until(event)

    with pytest.raises(KeyError, match="lost"):
        SharedMemoryExecutionStrategy(1).execute(algorithm, runner, InMemoryLightningStore())


def test_a_runner_that_fails_ends_the_run_with_its_error():
    async def algorithm(store: Any, event: Any) -> None:
        await asyncio.Event().wait()

    async def runner(store: Any, number: int, event: Any) -> None:
        if number == 1:
            raise ValueError("no tracer")
        await until(event)

    with pytest.raises(ExecutionError, match=r"lightning-runner-1 ended with ValueError: no tracer"):
        SharedMemoryExecutionStrategy(2).execute(algorithm, runner, InMemoryLightningStore())


@pytest.mark.parametrize("who", ["algorithm", "runner"])
def test_a_cancellation_that_nobody_asked_for_is_an_error(who: str):
    async def algorithm(store: Any, event: Any) -> None:
        if who == "algorithm":
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    async def runner(store: Any, number: int, event: Any) -> None:
        if who == "runner":
            raise asyncio.CancelledError
        await until(event)

    with pytest.raises(ExecutionError, match=who):
        SharedMemoryExecutionStrategy(1).execute(algorithm, runner, InMemoryLightningStore())


def test_an_algorithm_that_waits_for_runners_that_are_done_is_ended():
    async def algorithm(store: Any, event: Any) -> None:
        await asyncio.Event().wait()

    async def runner(store: Any, number: int, event: Any) -> None:
        return

    strategy = SharedMemoryExecutionStrategy(2, graceful_seconds=0.05)
    strategy.execute(algorithm, runner, InMemoryLightningStore())


def test_a_runner_that_does_not_heed_the_event_is_cancelled():
    cancelled = threading.Event()

    async def algorithm(store: Any, event: Any) -> None:
        return

    async def runner(store: Any, number: int, event: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    SharedMemoryExecutionStrategy(1, graceful_seconds=0.05).execute(
        algorithm, runner, InMemoryLightningStore()
    )
    assert cancelled.is_set()


def test_a_runner_that_heeds_nothing_is_left_behind_and_named(caplog: pytest.LogCaptureFixture):
    release = threading.Event()

    async def algorithm(store: Any, event: Any) -> None:
        return

    async def runner(store: Any, number: int, event: Any) -> None:
        release.wait(30)

    SharedMemoryExecutionStrategy(1, graceful_seconds=0.02, cancel_seconds=0.02).execute(
        algorithm, runner, InMemoryLightningStore()
    )
    release.set()
    assert "lightning-runner-0 does not stop" in caplog.text


def test_no_runners_are_refused():
    with pytest.raises(ConfigurationError, match="n_runners"):
        SharedMemoryExecutionStrategy(0)


SCRIPT = """
import sys
from lightning_core import Trainer, rollout, LLM

@rollout
async def agent(task, llm):
    import asyncio, os
    os.write(1, b"begun\\n")  # print writes the line and its end one after the other
    await asyncio.Event().wait()

trainer = Trainer(
    algorithm="baseline", n_runners=2, initial_resources={"llm": LLM(endpoint="http://localhost", model="m")},
    tracer="dummy", strategy={"type": "shm", "graceful_seconds": 0.1},
)
trainer.fit(agent, [1, 2, 3])
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT as a terminal does")
def test_ctrl_c_ends_the_process_with_130_and_no_traceback():
    """Trap 30."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors


async def test_a_stop_event_wakes_waiters_on_every_loop():
    event = StopEvent()
    woken: list[str] = []

    def elsewhere() -> None:
        asyncio.run(event.wait_async())
        woken.append("thread")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    waiting = asyncio.create_task(event.wait_async())
    await asyncio.sleep(0)
    event.set()
    await asyncio.wait_for(waiting, 10)
    thread.join(10)
    assert woken == ["thread"]
    await event.wait_async()
    assert event.is_set()
    assert event.wait(0)
    event.clear()
    assert not event.is_set()
