"""Tails of streams, and processes that are ended with all that they have started, whatever happens."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_core.litagent import program as program_module
from lightning_core.litagent.program import Program, Tail, running

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

PATIENCE = 30.0
# A shell that starts a process, says its number, and waits for it.
PARENT = ["/bin/sh", "-c", "sleep 1000 & echo $!; wait"]
STUBBORN = ["/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait; wait; wait"]


def start(arguments: list[str], **settings: Any) -> Any:
    given: dict[str, Any] = {
        "stdin": None,
        "environment": os.environ,
        "cwd": None,
        "stdout": Tail(1000),
        "stderr": Tail(1000),
        "terminate_seconds": 5.0,
    }
    return running(arguments, **(given | settings))


def alive(pid: int) -> bool:
    """Whether it runs; a zombie, whose new parent takes its time, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.01)


async def printed_pid(program: Program) -> int:
    await until(lambda: program.stdout.text().endswith("\n"))
    return int(program.stdout.text())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test leaves no file descriptor, thread or child that it has not found."""
    before = state()
    yield
    give_up = time.monotonic() + PATIENCE
    pause = threading.Event()
    # Threads that wait for a process end a moment after it; neighbours may have something of their own for a while.
    while any(now - then for now, then in zip(state(), before, strict=True)) and time.monotonic() < give_up:
        pause.wait(0.02)
    assert not [now - then for now, then in zip(state(), before, strict=True) if now - then]


def state() -> tuple[set[str], set[int | None], set[int]]:
    """File descriptors with what they are open for, threads and children."""
    descriptors = Path("/proc/self/fd")
    files: set[str] = set()
    for file in descriptors.iterdir() if descriptors.exists() else ():
        with contextlib.suppress(OSError):
            files.add(f"{file.name} {file.readlink()}")
    threads = {thread.ident for thread in threading.enumerate()}
    return files, threads, {child.pid for child in psutil.Process().children(recursive=True)}


# Tails


def test_tail_keeps_the_end_and_counts_all() -> None:
    tail = Tail(5)
    for piece in (b"ab", b"cdefghijkl", b"m", b"", b"no"):
        tail.add(piece)
    assert (tail.text(), tail.total, tail.cut) == ("klmno", 15, True)


def test_tail_of_a_short_stream_is_all_of_it() -> None:
    tail = Tail(5)
    tail.add(b"abcde")
    assert (tail.text(), tail.cut) == ("abcde", False)


@pytest.mark.parametrize("limit", range(1, 12))
def test_tail_does_not_begin_inside_a_character(limit: int) -> None:
    tail = Tail(limit)
    text = "aé€😀€é"
    tail.add(text.encode())
    assert text.endswith(tail.text())
    assert "\ufffd" not in tail.text()


def test_invalid_bytes_are_replaced() -> None:
    tail = Tail(100)
    tail.add(b"\x80a\xffb\xc3")
    assert tail.text() == "\ufffda\ufffdb\ufffd"


@pytest.mark.parametrize("limit", range(1, 60))
def test_no_part_of_a_secret_is_kept(limit: int) -> None:
    secrets = [b"abcdefghijklmnop", b"0123456789"]
    tail = Tail(limit, secrets)
    for byte in b"-- abcdefghijklmnop -- 0123456789abcdefghijklmnop --":
        tail.add(bytes([byte]))
    kept = tail.text()
    assert not set(kept) & set("abcdefghijklmnop0123456789")
    assert "-- *** -- ****** --".endswith(kept)


def test_tail_of_a_long_stream_takes_little_memory() -> None:
    tail = Tail(1000)
    for _ in range(1000):
        tail.add(bytes(100_000))
    assert tail.total == 100_000_000
    assert sys.getsizeof(tail._data) < 10_000


# Programs


async def test_output_and_exit_code_are_there_at_the_end() -> None:
    async with start(["/bin/sh", "-c", "cat; echo wrong >&2; exit 3"], stdin=b"hello\n") as program:
        assert await program.wait()
    assert program.exit_code == 3
    assert (program.stdout.text(), program.stderr.text()) == ("hello\n", "wrong\n")


async def test_standard_input_can_be_opened_by_name_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with start(["/bin/sh", "-c", "cat /dev/stdin"], stdin=b"hello") as program:
        assert await program.wait()
    assert program.stdout.text() == "hello"
    assert not files_in(tmp_path)


async def test_input_of_any_size_that_nobody_reads_holds_nothing_up() -> None:
    async with start(["/bin/sh", "-c", "echo done"], stdin=bytes(20_000_000)) as program:
        assert await program.wait(PATIENCE)
    assert program.stdout.text() == "done\n"


async def test_output_of_100_mb_on_both_streams_is_read_with_little_memory() -> None:
    flood = "head -c 100000000 /dev/zero & head -c 100000000 /dev/zero >&2; wait; echo end; echo END >&2"
    before = psutil.Process().memory_info().rss
    most = 0
    async with start(["/bin/sh", "-c", flood]) as program:
        while not await program.wait(0.05):
            most = max(most, psutil.Process().memory_info().rss)
    assert (program.stdout.total, program.stderr.total) == (100_000_004, 100_000_004)
    assert program.stdout.text().endswith("\0end\n")
    assert program.stderr.text().endswith("\0END\n")
    assert most - before < 30_000_000


async def test_group_ends_with_its_first_process() -> None:
    async with start(["/bin/sh", "-c", "sleep 1000 & echo $!"]) as program:
        assert await program.wait()
    assert program.exit_code == 0
    await until(lambda: not alive(int(program.stdout.text())))


async def test_group_ends_with_the_block() -> None:
    async with start(PARENT) as program:
        child = await printed_pid(program)
        assert alive(child)
    assert program.exit_code == -signal.SIGTERM
    await until(lambda: not alive(child))


async def test_group_ends_when_the_block_raises() -> None:
    children: list[int] = []

    async def fail() -> None:
        async with start(PARENT) as program:
            children.append(await printed_pid(program))
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    await until(lambda: not alive(children[0]))


async def test_time_to_end_is_granted() -> None:
    gentle = ["/bin/sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"]
    async with start(gentle) as program:
        await until(lambda: program.stdout.text() == "ready\n")
    assert program.exit_code == 7
    assert program.stdout.text() == "ready\nbye\n"


async def test_what_ignores_sigterm_is_killed() -> None:
    async with start(STUBBORN, terminate_seconds=0.3) as program:
        child = await printed_pid(program)
        begun = time.monotonic()
    assert time.monotonic() - begun >= 0.3
    assert program.exit_code == -signal.SIGKILL
    await until(lambda: not alive(child))


async def test_second_cancellation_kills_at_once() -> None:
    inside = asyncio.Event()
    programs: list[Program] = []

    async def run() -> None:
        async with start(STUBBORN, terminate_seconds=1000.0) as program:
            programs.append(program)
            await printed_pid(program)
            inside.set()
            await program.wait()

    task = asyncio.create_task(run())
    await inside.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    assert programs[0].exit_code is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await task
    assert programs[0].exit_code == -signal.SIGKILL
    await until(lambda: not alive(int(programs[0].stdout.text())))


@pytest.mark.parametrize("steps", [*range(16), 20, 30, 50])
async def test_cancellation_at_any_moment_leaves_nothing(steps: int) -> None:
    async def run() -> None:
        async with start(PARENT) as program:
            await program.wait()

    task = asyncio.create_task(run())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("steps", range(12))
async def test_cancellation_while_it_is_started_leaves_no_child(steps: int, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = ["/bin/sh", "-c", f"sleep 1000 & echo $! > {file}.new; mv {file}.new {file}; wait"]

    async def run() -> None:
        async with start(code) as program:
            await program.wait()

    task = asyncio.create_task(run())
    for _ in range(steps):
        await asyncio.sleep(0)
    # The loop is busy elsewhere, while the shell, if it was started, gets on.
    threading.Event().wait(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if file.exists():
        await until(lambda: not alive(int(file.read_text())))


async def test_any_number_of_cancellations_leaves_nothing() -> None:
    programs: list[Program] = []

    async def run() -> None:
        async with start(STUBBORN, terminate_seconds=1000.0) as program:
            programs.append(program)
            await program.wait()

    task = asyncio.create_task(run())
    await until(lambda: programs and programs[0].stdout.text().endswith("\n"))
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert programs[0].exit_code == -signal.SIGKILL
    await until(lambda: not alive(int(programs[0].stdout.text())))


LEAVER = """
import subprocess
left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(left.pid, flush=True)
left.returncode = 0
"""


@pytest.fixture
def short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "DRAIN_SECONDS", 0.5)


@pytest.mark.usefixtures("short_drain")
async def test_process_that_has_left_the_group_does_not_hold_up_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with start([sys.executable, "-I", "-S", "-c", LEAVER]) as program:
        assert await program.wait(PATIENCE)
    pid = int(program.stdout.text())
    try:
        assert program.exit_code == 0
        assert "something that it has started outside of its process group still runs" in caplog.text
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    # The pipes that were let go of are closed by the loop.
    await asyncio.sleep(0.01)


@pytest.mark.usefixtures("short_drain")
async def test_cancellation_while_the_rest_is_read_is_not_forgotten() -> None:
    programs: list[Program] = []

    async def run() -> None:
        async with start([sys.executable, "-I", "-S", "-c", LEAVER]) as program:
            programs.append(program)
            await program.wait()

    task = asyncio.create_task(run())
    await until(lambda: programs and programs[0].exit_code is not None)
    task.cancel()
    await asyncio.wait([task])
    os.kill(int(programs[0].stdout.text()), signal.SIGKILL)
    assert task.cancelled()
    await asyncio.sleep(0.01)


async def test_program_that_does_not_exist_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        await start(["/nowhere/to/be/found"]).__aenter__()


async def test_without_a_shell_programs_run_unguarded_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(program_module, "SHELL", "/nowhere/sh")
    monkeypatch.setattr(program_module, "_guarded", True)
    for _ in range(2):
        async with start(["/bin/echo", "hello"]) as program:
            await program.wait()
        assert program.stdout.text() == "hello\n"
    assert len(caplog.records) == 1
    assert "if this process is killed, the programs of its agents go on" in caplog.text


# A runner that is killed

RUNNER = """
import asyncio, os, sys
from lightning_core.litagent.program import Tail, running

async def main():
    async with running(
        ["/bin/sh", "-c", sys.argv[1]], stdin=None, environment=os.environ, cwd=None,
        stdout=Tail(1000), stderr=Tail(1000), terminate_seconds=1.0,
    ) as program:
        while len(program.stdout.text().split()) < 2:
            await asyncio.sleep(0.01)
        print(program.stdout.text(), flush=True)
        await program.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["gentle", "stubborn"])
def test_program_and_its_children_die_with_a_runner_that_is_killed(trap: str) -> None:
    code = f"{trap} echo $$; sleep 1000 >/dev/null & echo $!; wait; wait; wait"
    with subprocess.Popen([sys.executable, "-c", RUNNER, code], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        pids = [int(runner.stdout.readline()) for _ in range(2)]
        guards = [child.pid for child in psutil.Process(runner.pid).children() if child.pid not in pids]
        assert all(alive(pid) for pid in pids)
        runner.kill()
        runner.wait()
    assert len(guards) == 1
    pause = threading.Event()
    give_up = time.monotonic() + PATIENCE
    try:
        while any(alive(pid) for pid in [*pids, *guards]):
            assert time.monotonic() < give_up
            pause.wait(0.02)
    finally:
        for pid in [*pids, *guards]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
