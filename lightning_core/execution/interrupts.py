"""What Ctrl+C does in a process that follows others, and in those that it has started."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator

__all__ = ["interrupts_counted", "interrupts_held_back", "leave_interrupts_to_parent"]


@contextlib.contextmanager
def interrupts_counted(press: Callable[[], object]) -> Generator[None]:
    """Have Ctrl+C call a function, rather than raise wherever the main thread happens to be.

    A handler that the program has set itself stays, and on other threads than the main one nothing changes.

    Args:
        press: Called for each Ctrl+C, in a signal handler: it may be in the middle of anything.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: press())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def interrupts_held_back() -> Generator[None]:
    """Have a new process begin with SIGINT blocked: before it can handle it, it would end with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl+C in this new process: it reaches all of the terminal, and the parent decides what it means."""
    # Not SIG_IGN, which the programs that an agent starts would inherit.
    signal.signal(signal.SIGINT, _ignore)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _ignore(number: int, frame: object) -> None:
    pass
