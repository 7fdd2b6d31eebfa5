"""The strategy interface: where the algorithm and the runners execute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeAlias

from lightning_core.store.base import LightningStore, StoreStatistics
from lightning_core.types import Run

__all__ = ["AlgorithmBundle", "ExecutionEvent", "ExecutionStrategy", "Role", "RunnerBundle"]


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
"""Runs the algorithm to its end.

One that goes to another process is pickled. What it comes to there is what its method ``outcome()`` returns, if it has
one, and is handed to the method ``adopt(outcome)`` of the one that stayed.
"""

RunnerBundle: TypeAlias = Callable[[LightningStore, int, ExecutionEvent], Awaitable[None]]
"""Runs one runner, whose number is given, until the event is set. One that goes to another process is pickled.

Either may have a method ``parts()`` that returns what it holds by the user's own names for it; it serves to tell which
one cannot be pickled.
"""

Role: TypeAlias = Literal["both", "algorithm", "runner"]
"""Which sides of a run are executed from here."""


class ExecutionStrategy(ABC):
    """Executes one algorithm and several runners, and ends the runners when the algorithm has ended.

    Attributes:
        n_runners: How many runners.
        role: Which sides are executed from here. With ``"runner"``, a trainer calls :meth:`execute_runners` and
            nothing else: the run belongs to somebody else.
    """

    n_runners: int = 1
    role: Role = "both"

    def prepared(self) -> AbstractContextManager[None]:
        """Surround a run: entered before the trainer stores its beginning, left once its end is stored.

        Override it to refuse what cannot be executed, so that no failed run is left behind, or to keep what others
        need beyond :meth:`execute`. A trainer does not enter it for the role ``"runner"``.

        Raises:
            LightningError: If the run cannot be executed as things are.
        """
        return nullcontext()

    @abstractmethod
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run everything to the end.

        Raises:
            KeyboardInterrupt: After Ctrl+C, once algorithm and runners have stopped.
            ExecutionError: If a runner ended abnormally. An error of the algorithm is raised as it is.
        """

    def execute_runners(self, runner: RunnerBundle) -> tuple[Run | None, StoreStatistics]:
        """Run runners for a run that is executed elsewhere, until it is over; for strategies with such a role.

        Returns:
            That run and its counts, as they were seen last.

        Raises:
            KeyboardInterrupt: After Ctrl+C, once the runners have stopped.
            ExecutionError: If a runner ended abnormally, or the other side was never there.
        """
        raise NotImplementedError(f"{type(self).__name__} has no role 'runner'")

    def remote_store(self) -> LightningStore | None:
        """The store of the other side, for a role that has none of its own, else ``None``."""
        return None
