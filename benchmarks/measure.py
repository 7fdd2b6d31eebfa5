"""Timing and tables for the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all threads, that one call takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def wall_seconds(work: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(
    *works: Callable[[], Any], rounds: int = 5, clock: Callable[[Callable[[], Any]], float] = cpu_seconds
) -> list[float]:
    """Measure several things in turns, after one round that does not count, and return the median of each."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for index, work in enumerate(works):
            seconds = clock(work)
            if number:
                times[index].append(seconds)
    return [statistics.median(each) for each in times]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:,.4g}" for cell in row) + " |")
