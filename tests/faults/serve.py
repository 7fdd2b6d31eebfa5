"""A store server that can be harmed on request: ``python -m tests.faults.serve STORE PORT TOKEN``.

Commands come as lines of JSON on the standard input: ``{"clock": 30}`` moves the store's clock, ``{"disk": "full"}``
lets no file grow any more, ``{"disk": "free"}`` takes it back, ``{"count": true}`` asks for open files and threads.
Each is answered by a line of JSON on the standard output. The end of the input ends the server in an orderly way.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from lightning_store_http import LightningStoreServer


class Clock:
    """The time of day, moved by some seconds."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


def open_store(spec: str, clock: Clock) -> Any:
    """Open the store with this clock."""
    if spec.startswith("sqlite:"):
        from lightning_store_sqlite import SqliteLightningStore

        return SqliteLightningStore(spec, clock=clock)
    from lightning_store_postgres import PostgresLightningStore

    return PostgresLightningStore(spec, clock=clock)


def limit_files(spec: str, full: bool) -> None:
    """Let the store's files grow no more, or as they like; a write beyond the limit fails as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = hard
    if full:
        path = Path(spec.removeprefix("sqlite:///"))
        soft = max(path.with_name(path.name + end).stat().st_size for end in ("", "-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def main() -> None:
    """Serve until the input ends."""
    spec, port, token = sys.argv[1:4]
    clock = Clock()
    process = psutil.Process()
    server = LightningStoreServer(open_store(spec, clock), port=int(port), token=token)
    with server:
        print(json.dumps({"url": server.url, "pid": os.getpid()}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            if "clock" in command:
                clock.offset = command["clock"]
            if "disk" in command:
                limit_files(spec, command["disk"] == "full")
            answer = {"files": process.num_fds(), "threads": threading.active_count()}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
