"""Who a worker is, and how its process is doing."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["ProcessVitals", "claim_worker_id", "pid_namespace", "release_worker_id"]

_lock = threading.Lock()
_claimed: set[str] = set()


def claim_worker_id(number: int, name: str | None = None) -> str:
    """Return an id that no other worker has: ``<host>-<process id>-<number>``.

    Args:
        number: The worker's number in its run.
        name: Stands for host and process.
    """
    if name is None:
        host = re.sub(r"[^A-Za-z0-9._]+", "-", socket.gethostname()) or "host"
        name = f"{host}-{os.getpid()}"
    with _lock:
        worker_id = f"{name}-{number}"
        # Runners of several runs in one process may have the same number.
        again = 1
        while worker_id in _claimed:
            again += 1
            worker_id = f"{name}-{number}.{again}"
        _claimed.add(worker_id)
    return worker_id


def release_worker_id(worker_id: str) -> None:
    """Say that the worker has ended."""
    with _lock:
        _claimed.discard(worker_id)


def _reset_lock() -> None:
    # Another thread may have held it.
    global _lock
    _lock = threading.Lock()
    _claimed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_lock)


def pid_namespace() -> str | None:
    """Name of the Linux namespace in which a process id of this process means something, or ``None``.

    Containers may share a host's name without sharing its processes.
    """
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


class ProcessVitals:
    """CPU and memory of this process, for heartbeats."""

    def __init__(self) -> None:
        # Not at the top: it is needed from the first heartbeat on, and by nobody who only imports the runner.
        import psutil

        self._process = psutil.Process()
        self._host = socket.gethostname()
        self._namespace = pid_namespace()
        self._seen = self._process.create_time(), 0.0

    def read(self) -> dict[str, Any]:
        """Return host, process id and the namespace that it is of, CPU and memory.

        ``cpu_seconds`` is the CPU time that the process has used, ``cpu_percent`` its share of one core since the last
        reading, and ``memory_bytes`` its resident memory.
        """
        with self._process.oneshot():
            times = self._process.cpu_times()
            memory = self._process.memory_info().rss
        before, used_before = self._seen
        now, used = time.time(), times.user + times.system
        self._seen = now, used
        elapsed = max(now - before, 1e-3)
        return {
            "host": self._host,
            "pid": self._process.pid,
            "pid_namespace": self._namespace,
            "cpu_seconds": round(used, 3),
            "cpu_percent": round(max(100 * (used - used_before) / elapsed, 0.0), 1),
            "memory_bytes": memory,
        }
