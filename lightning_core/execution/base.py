"""The strategy interface: where the algorithm and the runners execute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from lightning_core.store.base import LightningStore

__all__ = ["AlgorithmBundle", "ExecutionEvent", "ExecutionStrategy", "RunnerBundle"]


class ExecutionEvent(Protocol):
    """A flag that asks for a stop, shared by the algorithm and the runners."""

    def set(self) -> None:
        """Ask for a stop."""
        ...

    def clear(self) -> None:
        """Take it back."""
        ...

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a stop is asked for, or ``timeout`` seconds have passed; return whether it was."""
        ...


AlgorithmBundle: TypeAlias = Callable[[LightningStore, ExecutionEvent], Awaitable[None]]
"""Runs the algorithm to its end."""

RunnerBundle: TypeAlias = Callable[[LightningStore, int, ExecutionEvent], Awaitable[None]]
"""Runs one runner, whose number is given, until the event is set."""


class ExecutionStrategy(ABC):
    """Executes one algorithm and several runners, and ends the runners when the algorithm has ended."""

    n_runners: int = 1

    @abstractmethod
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run everything to the end.

        Raises:
            KeyboardInterrupt: After Ctrl+C, once algorithm and runners have stopped.
            ExecutionError: If a runner ended abnormally. An error of the algorithm is raised as it is.
        """
