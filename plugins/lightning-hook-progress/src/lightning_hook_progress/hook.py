"""``ProgressHook``: counts rollouts as they end, and shows the count."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core import Hook, find_final_reward
from lightning_core.store.lifecycle import is_retried
from lightning_core.types import AttemptedRollout, RolloutV2, Span

from .display import Bar, Display, Lines
from .tally import Mean, Tally

if TYPE_CHECKING:
    from lightning_core import BaseRunner, LitAgent

__all__ = ["ProgressHook"]

_logger = logging.getLogger(__name__)

# How often the store is asked how many rollouts there are, in seconds, while a bar is drawn.
_TOTAL_SECONDS = 1.0


class ProgressHook(Hook):
    """Shows progress, mean reward and throughput. Its methods may be called by several threads at once.

    Nothing is shown before the first rollout starts; ``teardown`` shows the final figures. In a process that
    another one started, lines are written even on a terminal, since bars of several processes would mix.

    Args:
        total: How many rollouts there will be; ``None`` for as many as the store knows of so far.
        interval: The shortest time between two lines, in seconds.
        terminal: Draw a bar (``True``) or write lines (``False``); ``None`` finds out.
        stream: Where to write; ``None`` for the standard error stream.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        total: int | None = None,
        interval: float = 10.0,
        terminal: bool | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._interval = interval
        self._terminal = terminal
        self._stream = stream
        self._clock = clock
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process with the settings alone, where counting starts at zero."""
        return {
            "_total": self._total,
            "_interval": self._interval,
            "_terminal": self._terminal,
            "_stream": None,
            "_clock": self._clock,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start at zero."""
        vars(self).update(state)
        self._reset()

    @property
    def tally(self) -> Tally:
        """What was counted so far."""
        return self._tally

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Start at zero, for a new run."""
        self.teardown()
        self._reset()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Show the final figures, and give the terminal back."""
        with self._lock:
            display, self._display = self._display, None
            if display is not None:
                self._draw(lambda: display.close(self._tally, self._clock(), self._known_total))

    async def on_rollout_start(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], rollout: RolloutV2
    ) -> None:
        """Start the clock, and the display with it."""
        with self._lock:
            self._tally.start(self._clock())
            if self._display is None and not self._broken:
                self._draw(self._open)

    async def on_rollout_end(
        self,
        *,
        agent: LitAgent[Any],
        runner: BaseRunner[Any],
        rollout: RolloutV2,
        spans: Sequence[ReadableSpan] | Sequence[Span],
    ) -> None:
        """Count the rollout, and show the count."""
        reward = find_final_reward(spans)
        with self._lock:
            self._count(rollout, reward)
            now = self._clock()
            due = self._display is not None and self._display.due(now)
            ask = due and self._total is None and now >= self._ask_total_at
            if ask:
                self._ask_total_at = now + _TOTAL_SECONDS
        if ask:
            known = await _known_rollouts(runner)
            with self._lock:
                self._known_total = known
        if due:
            with self._lock:
                display = self._display
                if display is not None:
                    self._draw(lambda: display.update(self._tally, self._clock(), self._known_total))

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._tally = Tally()
        self._display: Display | None = None
        self._broken = False
        self._known_total = self._total
        self._ask_total_at = 0.0

    def _open(self) -> None:
        stream = self._stream or sys.stderr
        terminal = self._terminal
        if terminal is None:
            terminal = stream.isatty() and multiprocessing.parent_process() is None
        self._display = Bar(stream) if terminal else Lines(stream, self._interval, self._clock())

    def _count(self, rollout: RolloutV2, reward: float | None) -> None:
        status = rollout.attempt.status if isinstance(rollout, AttemptedRollout) else "succeeded"
        if isinstance(rollout, AttemptedRollout) and is_retried(rollout.config, rollout.attempt):
            self._tally.retried += 1
            return
        self._tally.ended += 1
        if status == "cancelled":
            self._tally.cancelled += 1
        elif status in ("failed", "timeout", "unresponsive"):
            self._tally.failed += 1
        if reward is not None:
            self._tally.rewards.setdefault(rollout.mode or "rollouts", Mean()).add(reward)
        elif status not in ("failed", "timeout", "unresponsive", "cancelled"):
            self._tally.unrewarded += 1

    def _draw(self, draw: Callable[[], None]) -> None:
        """Draw; a display that fails is switched off, since it must not disturb the run."""
        try:
            draw()
        except Exception:
            self._broken = True
            self._display = None
            _logger.warning("the progress display failed and is switched off", exc_info=True)


async def _known_rollouts(runner: BaseRunner[Any]) -> int | None:
    """Ask the runner's store how many rollouts it has; ``None`` if there is no telling."""
    get_store = getattr(runner, "get_store", None)
    if get_store is None:
        return None
    try:
        statistics = await get_store().statistics()
    except Exception:
        _logger.debug("the store did not say how many rollouts there are", exc_info=True)
        return None
    return sum(statistics.rollouts.values()) or None
