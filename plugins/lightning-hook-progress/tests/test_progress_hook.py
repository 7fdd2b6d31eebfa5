"""The progress hook: what it counts, when it writes, and that it disturbs nothing."""

import asyncio
import io
import logging
import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from lightning_hook_progress import ProgressHook
from lightning_hook_progress.plugin import ProgressConfig
from pydantic import ValidationError

from lightning_core import InMemoryLightningStore, Trainer, resolve, rollout
from lightning_core.errors import PluginSettingsError
from lightning_core.types import (
    LLM,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    RolloutConfig,
    RolloutMode,
    RolloutV2,
    Span,
    SpanNames,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def hook(clock: Clock, stream: io.StringIO) -> ProgressHook:
    return ProgressHook(total=10, interval=10.0, stream=stream, clock=clock)


def attempted(
    status: AttemptStatus = "succeeded",
    mode: RolloutMode | None = "train",
    sequence_id: int = 1,
    max_attempts: int = 1,
    reason: FailureReason | None = None,
) -> AttemptedRollout:
    attempt = Attempt(
        rollout_id="ro",
        attempt_id="at",
        sequence_id=sequence_id,
        start_time=0,
        status=status,
        reason=reason,
    )
    return RolloutV2(
        rollout_id="ro", input=1, start_time=0, mode=mode, config=RolloutConfig(max_attempts=max_attempts)
    ).with_attempt(attempt)


def rewards(*values: float) -> list[Span]:
    return [
        Span.from_attributes(name=SpanNames.REWARD.value, attributes={"reward": value}) for value in values
    ]


async def go_through(
    hook: ProgressHook, rollout: RolloutV2, spans: list[Span] | None = None, runner: Any = None
) -> None:
    common: dict[str, Any] = {"agent": None, "runner": runner, "rollout": rollout}
    await hook.on_rollout_start(**common)
    await hook.on_rollout_end(**common, spans=spans if spans is not None else rewards(1.0))


async def test_it_counts_every_way_to_end(hook: ProgressHook):
    await go_through(hook, attempted(), rewards(0.0, 0.5))
    await go_through(hook, attempted(), rewards(1.0))
    await go_through(hook, attempted(), [])
    await go_through(hook, attempted("failed"), [])
    await go_through(hook, attempted("timeout"), rewards(0.0))
    await go_through(hook, attempted("cancelled"), [])
    await go_through(hook, attempted("failed", max_attempts=2), [])
    await go_through(hook, attempted("failed", sequence_id=2, max_attempts=2), [])
    await go_through(hook, attempted("failed", reason="infrastructure"), [])
    await go_through(hook, attempted(mode="val"), rewards(0.25))
    tally = hook.tally
    assert (tally.ended, tally.failed, tally.cancelled, tally.retried, tally.unrewarded) == (8, 3, 1, 2, 1)
    assert tally.rewards["train"].count == 3  # the last reward of a rollout is the one that counts
    assert tally.rewards["train"].value == 0.5
    assert tally.rewards["val"].value == 0.25


async def test_a_runner_that_does_not_say_how_the_attempt_ended_is_fine(hook: ProgressHook):
    await go_through(hook, RolloutV2(rollout_id="ro", input=1, start_time=0))
    assert (hook.tally.ended, hook.tally.failed) == (1, 0)


async def test_lines_come_at_a_limited_rate_and_one_at_the_end(
    hook: ProgressHook, clock: Clock, stream: io.StringIO
):
    for _ in range(5):
        await go_through(hook, attempted())
    assert stream.getvalue() == ""
    clock.now += 10
    for _ in range(3):
        await go_through(hook, attempted())
    assert stream.getvalue() == "progress: 6/10 rollouts, 0.6/s, reward 1.00 ± 0.00\n"
    clock.now += 6
    hook.teardown()
    assert stream.getvalue().splitlines()[1:] == ["progress: 8/10 rollouts, 0.5/s, reward 1.00 ± 0.00"]
    hook.teardown()
    assert len(stream.getvalue().splitlines()) == 2


def test_nothing_is_written_when_nothing_ran(hook: ProgressHook, stream: io.StringIO):
    hook.init()
    hook.teardown()
    assert stream.getvalue() == ""


async def test_a_second_run_starts_at_zero(hook: ProgressHook, stream: io.StringIO):
    for _ in range(2):
        hook.init()
        await go_through(hook, attempted())
        hook.teardown()
    lines = stream.getvalue().splitlines()
    assert lines == ["progress: 1/10 rollouts, reward 1.00"] * 2


async def test_without_a_total_the_store_says_how_many_there_are(clock: Clock, stream: io.StringIO):
    store = InMemoryLightningStore()
    for task in range(3):
        await store.enqueue_rollout(task)
    hook = ProgressHook(interval=0.0, stream=stream, clock=clock)
    await go_through(hook, attempted(), runner=SimpleNamespace(get_store=lambda: store))
    assert stream.getvalue().startswith("progress: 1/3 rollouts")


async def test_a_store_that_does_not_answer_changes_nothing(clock: Clock, stream: io.StringIO):
    def broken() -> Any:
        raise OSError("gone")

    hook = ProgressHook(interval=0.0, stream=stream, clock=clock)
    await go_through(hook, attempted(), runner=SimpleNamespace(get_store=broken))
    assert stream.getvalue() == "progress: 1 rollouts, reward 1.00\n"


async def test_a_terminal_gets_a_bar_that_ends_with_the_cursor_back(clock: Clock):
    terminal = Terminal()
    hook = ProgressHook(total=4, stream=terminal, clock=clock)
    for _ in range(4):
        clock.now += 0.5
        await go_through(hook, attempted())
    await go_through(hook, attempted("failed"), [])
    hook.teardown()
    shown = terminal.getvalue()
    for part in ("5/5", "reward 1.00 ± 0.00", "1 failed"):
        assert part in shown
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert shown.rindex(show) > shown.rindex(hide)


@pytest.mark.parametrize(("terminal", "bar"), [(True, True), (False, False)])
async def test_the_setting_overrides_the_terminal(clock: Clock, terminal: bool, bar: bool):
    stream = io.StringIO() if terminal else Terminal()
    hook = ProgressHook(total=1, terminal=terminal, stream=stream, clock=clock)
    await go_through(hook, attempted())
    hook.teardown()
    assert ("\x1b[?25l" in stream.getvalue()) is bar


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_closed_stream_switches_the_display_off_and_nothing_else(
    clock: Clock, terminal: bool, caplog: pytest.LogCaptureFixture
):
    stream = io.StringIO()
    stream.close()
    hook = ProgressHook(interval=0.0, terminal=terminal, stream=stream, clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await go_through(hook, attempted())
        hook.teardown()
    assert hook.tally.ended == 3
    assert [record.getMessage() for record in caplog.records] == [
        "the progress display failed and is switched off"
    ]


def test_runner_threads_lose_no_count(clock: Clock, stream: io.StringIO):
    hook = ProgressHook(interval=0.0, total=400, stream=stream, clock=clock)
    barrier = threading.Barrier(4)

    async def work() -> None:
        barrier.wait(10)
        await asyncio.gather(*(go_through(hook, attempted()) for _ in range(100)))

    run: Callable[[], None] = lambda: asyncio.run(work())  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    hook.teardown()
    assert hook.tally.ended == hook.tally.rewards["train"].count == 400
    assert stream.getvalue().splitlines()[-1].startswith("progress: 400/400 rollouts")


async def test_it_travels_to_another_process_with_its_settings_alone(hook: ProgressHook):
    await go_through(hook, attempted())
    hook._clock = dict  # a clock that can be pickled
    other = pickle.loads(pickle.dumps(hook))
    assert other.tally.ended == 0
    assert (other._total, other._interval, other._stream) == (10, 10.0, None)


def test_it_is_selected_by_name_with_checked_settings():
    hook = resolve("hook", {"type": "progress", "total": 5, "interval": 1})
    assert isinstance(hook, ProgressHook)
    with pytest.raises(PluginSettingsError, match="total"):
        resolve("hook", {"type": "progress", "total": 0})
    with pytest.raises(ValidationError, match="speed"):
        ProgressConfig(speed=3)


@pytest.mark.parametrize("n_runners", [1, 3])
def test_a_whole_run_is_counted_and_the_rollouts_are_unchanged(n_runners: int, stream: io.StringIO):
    @rollout
    def solve(task: int, llm: LLM) -> float:
        if task == 0:
            raise ValueError("this one fails")
        return 0.5

    hook = ProgressHook(stream=stream)
    trainer = Trainer(
        tracer="dummy",
        algorithm="baseline",
        hooks=[hook],
        n_runners=n_runners,
        initial_resources={"llm": LLM(endpoint="http://127.0.0.1:1", model="none")},
    )
    result = trainer.fit(solve, list(range(6)))
    assert result.rollouts == {"succeeded": 5, "failed": 1}
    assert (hook.tally.ended, hook.tally.failed, hook.tally.unrewarded) == (6, 1, 0)
    assert stream.getvalue().splitlines()[-1].endswith("reward 0.50 ± 0.00, 1 failed")
