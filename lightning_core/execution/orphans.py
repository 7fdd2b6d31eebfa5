"""A note of each process that a strategy has started, by which those left behind are found, and no others."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["end_orphans", "is_alive", "note_end", "note_start", "start_mark"]

logger = logging.getLogger(__name__)


def start_mark(pid: int) -> str | None:
    """What tells a running process from a later one of the same number, or ``None`` if there is no such process."""
    try:
        # Field 22, ticks since the machine has started: a clock that is set does not change it. The name of the
        # program, in parentheses, may hold spaces.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_mark_elsewhere(pid)
    except OSError:
        return None
    # One that has ended, and whose parent has not asked for its exit code yet, is gone.
    return None if fields[0] in ("Z", "X") else fields[19]


def _start_mark_elsewhere(pid: int) -> str | None:
    try:
        # Wherever a strategy starts processes, it is installed.
        import psutil
    except ImportError:
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(int(process.create_time()))
    except psutil.Error:
        return None


def is_alive(pid: int, mark: str | None) -> bool:
    """Whether the process of that number and :func:`start_mark` still runs."""
    return mark is not None and start_mark(pid) == mark


def note_start(pid: int) -> None:
    """Note that this process has started another one, and remove the notes of those that have ended."""
    folder = _folder()
    mark = start_mark(pid)
    if folder is None or mark is None:
        return
    _living(folder)
    parent = os.getpid()
    note = {"pid": pid, "mark": mark, "parent": parent, "parent_mark": start_mark(parent), "space": _space()}
    path = folder / f"{pid}.json"
    begun = path.with_suffix(f".{parent}")
    try:
        # Another process may read it meanwhile, and would remove half a note.
        begun.write_text(json.dumps(note), encoding="utf-8")
        begun.replace(path)
    except OSError as error:
        logger.warning("process %d is not noted, so it could not be found if it is orphaned: %s", pid, error)


def note_end(pid: int) -> None:
    """Note that a process which this one had started has ended."""
    folder = _folder()
    if folder is not None:
        with suppress(OSError):
            (folder / f"{pid}.json").unlink(missing_ok=True)


def end_orphans(terminate_seconds: float = 3.0) -> list[int]:
    """End the noted processes whose parent is gone, and return their ids.

    Args:
        terminate_seconds: How long they may take after SIGTERM; then they are killed.
    """
    folder = _folder()
    if folder is None:
        return []
    orphans: list[tuple[Path, int, str]] = [
        (path, note["pid"], note["mark"])
        for path, note in _living(folder)
        if not is_alive(note["parent"], note["parent_mark"])
    ]
    for _, pid, mark in orphans:
        logger.warning("ending process %d, which an earlier run left behind", pid)
        _signal(pid, mark, signal.SIGTERM)
    _wait(orphans, terminate_seconds)
    for _, pid, mark in orphans:
        _signal(pid, mark, getattr(signal, "SIGKILL", signal.SIGTERM))
    _wait(orphans, terminate_seconds)
    ended: list[int] = []
    for path, pid, mark in orphans:
        if is_alive(pid, mark):
            logger.error("process %d does not end", pid)
            continue
        ended.append(pid)
        with suppress(OSError):
            path.unlink()
    return ended


def _living(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the notes of processes that run, and remove those of processes that have ended."""
    living: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.json")):
        note = _read(path)
        if note is not None and note["space"] != _space():
            continue
        if note is not None and is_alive(note["pid"], note["mark"]):
            living.append((path, note))
            continue
        with suppress(OSError):
            path.unlink()
    return living


def _read(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(note["pid"]), "parent": int(note["parent"])} | {
            name: str(note[name]) for name in ("mark", "parent_mark", "space")
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _space() -> str:
    """Where a process id means something: a container that shares the folder with others has ids of its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _signal(pid: int, mark: str, number: int) -> None:
    if is_alive(pid, mark):
        with suppress(OSError):
            os.kill(pid, number)


def _wait(orphans: list[tuple[Path, int, str]], seconds: float) -> None:
    """Wait until they are gone. They are nobody's children here, so they can only be looked at."""
    pause = threading.Event()
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and any(is_alive(pid, mark) for _, pid, mark in orphans):
        pause.wait(0.02)


def _folder() -> Path | None:
    """This user's own folder for the notes; ``None`` where somebody else could have written them."""
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"lightning-core-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        logger.debug("no notes of processes: %s", error)
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        logger.warning("%s is not this user's alone, so no processes are noted there", folder)
        return None
    return folder
