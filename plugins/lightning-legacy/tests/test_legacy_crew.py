"""How a crew of workers is ended, step by step."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from lightning_legacy import crew as crews
from lightning_legacy.crew import Crew

from lightning_core.errors import ExecutionError

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread"
)


class Part:
    """A worker that notes what it is told, and does in each step what it was given."""

    def __init__(self, crew: Crew, **steps: Callable[[Part], object]) -> None:
        self.name = "worker 0"
        self.error: BaseException | None = None
        self.finished = False
        self.rollouts: Counter[Any] = Counter()
        self.told: list[str] = []
        self.crew = crew
        self.steps = steps

    def _do(self, step: str) -> None:
        self.told.append(step)
        self.steps.get(step, lambda part: None)(self)

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        self._do("stop")

    def cancel(self) -> None:
        self._do("cancel")

    def kill(self) -> None:
        self._do("kill")

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.finished = error, True
        self.crew.wake()


def press(part: Part) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that no test waits for."""
    monkeypatch.setattr(crews, "GRACEFUL_SECONDS", 300.0)
    monkeypatch.setattr(crews, "CANCEL_SECONDS", 300.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "GRACEFUL_SECONDS", 0.01)
    monkeypatch.setattr(crews, "CANCEL_SECONDS", 0.01)


def test_workers_that_end_by_themselves_are_told_nothing(patient: None):
    crew = Crew()
    part = Part(crew, start=lambda part: threading.Thread(target=part.end).start())
    crew.run([part])
    assert part.told == ["start"]


def test_ctrl_c_while_workers_start_is_heard(patient: None):
    crew = Crew()
    part = Part(crew, start=press, stop=Part.end)
    with pytest.raises(KeyboardInterrupt):
        crew.run([part])
    assert part.told == ["start", "stop"]


def test_each_further_ctrl_c_goes_one_step_on_at_once(patient: None):
    crew = Crew()
    part = Part(crew, start=press, stop=press, cancel=press, kill=Part.end)
    with pytest.raises(KeyboardInterrupt):
        crew.run([part])
    assert part.told == ["start", "stop", "cancel", "kill"]


def test_a_worker_that_heeds_nothing_is_left_behind(hasty: None, caplog: pytest.LogCaptureFixture):
    crew = Crew()
    part = Part(crew, start=press)
    with pytest.raises(KeyboardInterrupt):
        crew.run([part])
    assert part.told == ["start", "stop", "cancel", "kill"]
    assert "worker 0 does not stop; it is left behind" in caplog.text


def test_a_worker_that_cannot_start_ends_the_others(patient: None):
    def fail(part: Part) -> None:
        raise OSError("no more processes")

    crew = Crew()
    first, second = Part(crew, stop=Part.end), Part(crew, start=fail)
    with pytest.raises(OSError, match="no more processes"):
        crew.run([first, second])
    assert (first.told, second.told) == (["start", "stop"], ["start"])


def test_the_handler_of_ctrl_c_is_put_back_and_others_are_left_alone(patient: None):
    before = signal.getsignal(signal.SIGINT)
    crew = Crew()
    crew.run([Part(crew, start=Part.end)])
    assert signal.getsignal(signal.SIGINT) is before

    def own(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, own)
    try:
        crew = Crew()
        part = Part(crew, stop=Part.end)
        timer = threading.Timer(
            0.05, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        )
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            crew.run([part])
        assert part.told == ["start", "stop"]
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_worker_that_ended_well_is_enough(patient: None, caplog: pytest.LogCaptureFixture):
    crew = Crew()
    failing = Part(crew, start=lambda part: part.end(ValueError("broken")))
    crew.run([failing, Part(crew, start=Part.end)])
    assert (
        "worker 0 has failed; what it had in hand, the server hands out again: ValueError: broken"
        in caplog.text
    )
    crew = Crew()
    failing = Part(crew, start=lambda part: part.end(ValueError("broken")))
    with pytest.raises(ExecutionError, match="worker 0 has failed, and none is left: ValueError: broken"):
        crew.run([failing])
