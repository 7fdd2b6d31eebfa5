"""A program of an agent's: started in a process group of its own, and ended with all that it has started."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import IO, Any, cast

__all__ = ["Program", "Tail", "running"]

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long what a killed program has written is still read, and its end waited for."""

SHELL = "/bin/sh"

# Outlives a runner that is killed: the end of its standard input is the end of the runner. It then ends the process
# group whose number it has been told.
_GUARD = """\
read -r group || exit 0
read -r _
kill -TERM "-$group" || exit 0
left=$1
while [ "$left" -gt 0 ] && kill -0 "-$group"; do sleep 1; left=$((left - 1)); done
kill -KILL "-$group"
"""


class Tail:
    """The end of a stream, without the secrets that were in it.

    Args:
        limit: How much of it to keep, in bytes.
        hidden: What to blot out.
    """

    def __init__(self, limit: int, hidden: Sequence[bytes] = ()) -> None:
        self.total = 0
        """How long the stream was, in bytes."""
        self._limit = limit
        self._hidden = hidden
        # A secret whose beginning is lost could not be found any more: as much is kept, and then left out.
        self._margin = max(map(len, hidden), default=0)
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        kept = self._limit + self._margin
        self.total += len(data)
        self._data += data
        if len(self._data) > 2 * kept:
            del self._data[:-kept]

    @property
    def cut(self) -> bool:
        """Whether the beginning of the stream is missing."""
        return self.total > self._limit

    def text(self) -> str:
        """Return it as text; what is not UTF-8 is replaced."""
        kept = bytes(self._data[-(self._limit + self._margin) :])
        begins_late = len(kept) < self.total
        for secret in self._hidden:
            kept = kept.replace(secret, b"***")
        if begins_late:
            kept = kept[self._margin :]
        kept = kept[-self._limit :]
        if self.cut:
            # The rest of a character whose beginning is lost.
            head = kept[:3]
            kept = kept[len(head) - len(head.lstrip(bytes(range(0x80, 0xC0)))) :]
        return kept.decode("utf-8", "replace")


class Program(asyncio.SubprocessProtocol):
    """A process that leads a group of its own, and what it has written; :func:`running` makes it."""

    def __init__(self, stdout: Tail, stderr: Tail) -> None:
        loop = asyncio.get_running_loop()
        self.stdout = stdout
        self.stderr = stderr
        self.pid = 0
        self._exited = loop.create_future()
        self._closed = loop.create_future()
        self._transport: asyncio.SubprocessTransport | None = None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or the number of the signal that ended it, below zero; ``None`` while it runs."""
        return self._transport.get_returncode() if self._transport is not None else None

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended by itself, and return whether it has within ``seconds``."""
        await asyncio.wait([self._exited], timeout=seconds)
        return self._exited.done()

    async def end(self, seconds: float) -> None:
        """End what is left of its group, and wait until that is done and all that it has written was read.

        Args:
            seconds: How long it may take to end after SIGTERM; then it is killed. Cancellation cuts this short.
        """
        try:
            if not self._exited.done() and seconds > 0:
                self.signal(signal.SIGTERM)
                await asyncio.wait([self._exited], timeout=seconds)
        finally:
            # Also when it has ended: what it has started, and left behind, belongs to the group.
            self.signal(signal.SIGKILL)
            try:
                await _uninterrupted(self._closed, DRAIN_SECONDS)
            finally:
                self._let_go()

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def tell(self, text: str) -> None:
        """Write to its standard input, if that is a pipe."""
        assert self._transport is not None
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if pipe is not None:
            pipe.write(text.encode())

    def _let_go(self) -> None:
        if self._transport is None:
            return
        if not self._exited.done():
            logger.error("process %d does not end, though it was killed", self.pid)
        elif not self._closed.done():
            logger.warning(
                "process %d has ended, and something that it has started outside of its process group still runs",
                self.pid,
            )
        self._transport.close()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It was started."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It has written something."""
        (self.stdout if fd == 1 else self.stderr).add(data)

    def process_exited(self) -> None:
        """It has ended; what it has started may still run, and what it has written may not be read yet."""
        self._exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, and so have its pipes."""
        if not self._closed.done():
            self._closed.set_result(None)


@asynccontextmanager
async def running(
    arguments: Sequence[str],
    *,
    stdin: bytes | None,
    environment: Mapping[str, str],
    cwd: str | None,
    stdout: Tail,
    stderr: Tail,
    terminate_seconds: float,
) -> AsyncGenerator[Program]:
    """Run a program during a block. However the block ends, nothing of the program's process group runs afterwards.

    If this process is killed meanwhile, the group is ended too.

    Args:
        arguments: The program and its arguments.
        stdin: Its standard input; ``None`` for none.
        environment: Its whole environment.
        cwd: Its working directory; ``None`` for this process's.
        stdout: What takes its standard output.
        stderr: What takes its standard error stream.
        terminate_seconds: How long it may take to end after SIGTERM.

    Raises:
        OSError: If it cannot be started.
        ValueError: If an argument or a variable holds a NUL character.
    """
    async with AsyncExitStack() as stack:
        guard = await _start_guard(terminate_seconds)
        if guard is not None:
            stack.push_async_callback(guard.end, 0)
        # A file and not a pipe: it is there at once, whatever its size, and nobody must keep on writing.
        with _as_file(stdin) as source:
            program = await _launch(
                arguments,
                stdout,
                stderr,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=cwd,
            )
        stack.push_async_callback(program.end, terminate_seconds)
        if guard is not None:
            guard.tell(f"{program.pid}\n")
        yield program


async def _launch(arguments: Sequence[str], out: Tail, errors: Tail, **settings: Any) -> Program:
    """Start a process with a session, and so a process group, of its own; not even a cancellation leaves it behind."""
    loop = asyncio.get_running_loop()
    program = Program(out, errors)
    starting = loop.create_task(
        loop.subprocess_exec(lambda: program, *arguments, start_new_session=True, **settings)
    )
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        try:
            await _uninterrupted(starting, DRAIN_SECONDS)
        finally:
            if starting.done() and starting.exception() is None:
                await program.end(0)
        raise
    return program


_guarded = True


async def _start_guard(terminate_seconds: float) -> Program | None:
    """Start what ends the program if this process is killed."""
    global _guarded
    try:
        return await _launch(
            [SHELL, "-c", _GUARD, "lightning-guard", str(math.ceil(terminate_seconds))],
            Tail(1),
            Tail(1),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
    except OSError as error:
        if _guarded:
            _guarded = False
            logger.warning("if this process is killed, the programs of its agents go on: %s", error)
        return None


def _as_file(data: bytes | None) -> IO[bytes]:
    if data is None:
        return open(os.devnull, "rb")  # noqa: PTH123 - a device
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


async def _uninterrupted(future: asyncio.Future[Any], seconds: float) -> None:
    """Wait for what will not take long, also while being cancelled; the cancellation comes afterwards."""
    give_up = time.monotonic() + seconds
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and (left := give_up - time.monotonic()) > 0:
        try:
            await asyncio.wait([future], timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
