"""Separate programs: a server that is killed and started again, clients of which one is killed, and the runner."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
TASKS = 1000


class Program:
    """A running program, and the lines that it has printed."""

    def __init__(self, changed: threading.Condition, name: str, *arguments: object) -> None:
        self.lines: list[str] = []
        self._changed = changed
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.strip())
                self._changed.notify_all()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """What ``kill -9`` does."""
        self.process.kill()
        self.process.wait(60)
        self._reader.join(60)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Scene:
    """Programs, which tell the test when they have printed something."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.programs: list[Program] = []

    def start(self, name: str, *arguments: object) -> Program:
        program = Program(self._changed, name, *arguments)
        self.programs.append(program)
        return program

    def wait(self, condition: Callable[[], bool], *alive: Program) -> None:
        """Wait for something that a line of a program makes true."""
        with self._changed:
            while not condition():
                for program in alive:
                    assert program.process.poll() is None, f"it has ended: {program.process.args}"
                self._changed.wait(1.0)

    def done(self) -> int:
        """How many tasks the programs say that they have done."""
        return sum(line.startswith("done ") for program in self.programs for line in program.lines)


@contextmanager
def scene() -> Iterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        for program in made.programs:
            program.kill()


def results_of(server: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.lines if line.startswith("{")]


@pytest.mark.timeout(300)
def test_no_task_is_lost_or_counted_twice_when_a_client_is_killed_and_the_server_restarted(durable: str):
    with scene() as programs:
        server = programs.start("server", durable, 0, TASKS)
        programs.wait(lambda: bool(server.lines), server)
        port = int(server.lines[0].removeprefix("port "))
        endpoint = f"http://127.0.0.1:{port}"
        doomed = programs.start("client", endpoint, 20)
        workers = [
            *(programs.start("client", endpoint) for _ in range(3)),
            programs.start("runner", endpoint),
        ]
        programs.wait(lambda: all(each.lines for each in (doomed, *workers)), server, doomed, *workers)
        server.tell("queue them")

        programs.wait(lambda: doomed.lines[-1].startswith("holds "), server, *workers)
        held = doomed.lines[-1].removeprefix("holds ")
        doomed.kill()

        programs.wait(lambda: "queued" in server.lines and programs.done() >= TASKS * 0.4, server, *workers)
        server.kill()
        assert programs.done() < TASKS
        server = programs.start("server", durable, port)
        programs.wait(lambda: len(results_of(server)) >= TASKS, server, *workers)
        rounds = server.lines.count("round")
        programs.wait(lambda: server.lines.count("round") > rounds + 5, server, *workers)

        results = results_of(server)
        assert len(results) == TASKS
        assert len({result["rollout_id"] for result in results}) == TASKS
        assert sorted(result["final_reward"] for result in results) == [
            2.0 * number for number in range(TASKS)
        ]
        by_id = {result["rollout_id"]: result for result in results}
        assert by_id[held]["metadata"].get("pid") != doomed.process.pid
        assert all(len(program.lines) > 1 for program in workers)
