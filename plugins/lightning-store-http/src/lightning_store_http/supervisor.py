"""Follows the parts of an execution to their end, and ends them."""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from lightning_core.errors import ExecutionError
from lightning_core.execution.interrupts import interrupts_counted

from .parts import Part, ProcessPart
from .processes import Child, News

__all__ = ["Patience", "Supervisor"]

logger = logging.getLogger(__name__)

_Event: TypeAlias = tuple[ProcessPart, Child, News] | None


@dataclass(frozen=True)
class Patience:
    """How long each step of stopping may take, in seconds.

    Attributes:
        graceful: To finish what is in hand.
        terminate: To end after an interrupt, after SIGTERM, and after SIGKILL.
    """

    graceful: float
    terminate: float


@dataclass
class Supervisor:
    """Runs an algorithm and runners to their end.

    Attributes:
        patience: How long stopping may take.
        on_stop: Called when the end begins.
        algorithm: The algorithm; ``None`` if it is executed elsewhere, and the runners end by themselves.
        runners: The runners; none if they are elsewhere.
    """

    patience: Patience
    on_stop: Callable[[], None]
    algorithm: Part | None = None
    runners: list[Part] = field(default_factory=list[Part])
    _events: queue.SimpleQueue[_Event] = field(default_factory=queue.SimpleQueue[_Event])
    _presses: int = 0

    @property
    def parts(self) -> list[Part]:
        """All parts."""
        return [*self.runners, *([] if self.algorithm is None else [self.algorithm])]

    def wake(self) -> None:
        """Say that a part in a thread has ended; from any thread."""
        self._events.put(None)

    def post(self, part: ProcessPart, child: Child, news: News) -> None:
        """Queue a piece of news; from any thread."""
        self._events.put((part, child, news))

    def children(self) -> list[Child]:
        """The processes that live."""
        return [part.child for part in self.parts if isinstance(part, ProcessPart) and part.child is not None]

    def run(self) -> None:
        """Start everything, wait for the end, and stop everything.

        Raises:
            KeyboardInterrupt: After Ctrl+C, when everything has stopped.
            ExecutionError: If a runner ended abnormally.
            BaseException: What the algorithm raised.
        """
        begun: list[Part] = []
        with interrupts_counted(self._press):
            try:
                for part in self.parts:
                    begun.append(part)
                    part.start()
                self._watch()
            finally:
                self._end(begun)
        if self._presses:
            raise KeyboardInterrupt
        self._raise_errors()

    def _press(self) -> None:
        self._presses += 1
        self.wake()

    def _raise_errors(self) -> None:
        error = self.algorithm.error if self.algorithm is not None else None
        if isinstance(error, asyncio.CancelledError):
            raise ExecutionError("the algorithm awaited something that was cancelled, and ended") from error
        if error is not None:
            raise error
        failed = [part for part in self.runners if part.error is not None]
        for part in failed[1:]:
            logger.error("%s failed too: %s", part.name, part.error)
        if failed:
            error = failed[0].error
            if isinstance(error, ExecutionError) and error.__cause__ is None and failed[0].name in str(error):
                raise error
            raise ExecutionError(f"{failed[0].name} ended with {type(error).__name__}: {error}") from error

    def _watch(self) -> None:
        """Wait until the algorithm has ended, or cannot go on because a runner failed or none is left."""
        algorithm = self.algorithm
        while not self._presses and (algorithm is None or not algorithm.finished):
            failed = next((part for part in self.runners if part.error is not None), None)
            if failed is not None:
                logger.error("%s failed; stopping the run", failed.name)
                if algorithm is not None:
                    algorithm.interrupt()
                return
            if algorithm is None and any(
                isinstance(part, ProcessPart) and part.run_over for part in self.runners
            ):
                # One that starts this late would not find a server to tell it.
                return
            if all(part.finished for part in self.runners) and (self.runners or algorithm is None):
                self._runners_are_done()
                return
            self._next(None)

    def _runners_are_done(self) -> None:
        """They have reached max_rollouts. What the algorithm still waits for will not come."""
        algorithm = self.algorithm
        if algorithm is None:
            return
        if not self._until(lambda: algorithm.finished, self.patience.graceful) and not self._presses:
            logger.warning("all runners have reached max_rollouts; ending the algorithm")
            algorithm.interrupt()

    def _end(self, begun: list[Part]) -> None:
        """Stop what still runs, a little less politely with each step, and at once with each further Ctrl+C."""
        patience = self.patience
        steps: list[tuple[Callable[[Part], None], float]] = [
            (Part.stop, patience.graceful),
            (Part.interrupt, patience.terminate),
            (Part.terminate, patience.terminate),
            (Part.kill, patience.terminate),
        ]
        presses = self._presses
        if presses:
            logger.warning(
                "interrupted; rollouts in hand have %g s to end, and are cancelled then, or at the next Ctrl+C",
                patience.graceful,
            )
            if self.algorithm is not None:
                self.algorithm.interrupt()
        self.on_stop()
        for number, (step, seconds) in enumerate(steps):
            for part in begun:
                if not part.finished:
                    _call(step, part)
            hurried = self._presses > presses + number
            if self._until(lambda: all(part.finished for part in begun), 0.0 if hurried else seconds):
                break

    def _until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Go on until it is reached, so many seconds have passed, or Ctrl+C is pressed (once more)."""
        give_up = time.monotonic() + seconds
        presses = self._presses
        while not reached():
            if time.monotonic() >= give_up or self._presses > presses:
                return False
            self._next(give_up)
        return True

    def _next(self, give_up: float | None) -> None:
        """Handle the next event, or what is due."""
        due = [due for part in self.parts if (due := part.due()) is not None]
        if give_up is not None:
            due.append(give_up)
        try:
            event = self._events.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
        except queue.Empty:
            event = None
        except KeyboardInterrupt:
            # From a handler that is not this object's.
            self._presses += 1
            event = None
        if event is not None:
            part, child, news = event
            part.handle(child, news)
        for part in self.parts:
            part.tick()


def _call(step: Callable[[Part], None], part: Part) -> None:
    # By name: the steps are overridden.
    getattr(part, step.__name__)()
