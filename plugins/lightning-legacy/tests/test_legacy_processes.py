"""Worker processes of scripts: how they start, and how they end with Ctrl+C or when their parent is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from lightning_legacy import AgentLightningServer

from lightning_core import LLM
from lightning_core.bridge import run_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals to a session of processes")

PATIENCE = 60.0

HEAD = """
import asyncio, os, pathlib, sys, threading
import lightning_legacy.crew
from lightning_core import LLM, LitAgent, Trainer, rollout
from lightning_core.client import AgentLightningClient

lightning_legacy.crew.GRACEFUL_SECONDS = lightning_legacy.crew.CANCEL_SECONDS = float(sys.argv[3])
client = AgentLightningClient(sys.argv[1], poll_interval=0.05)

def fit(agent, **settings):
    return Trainer(tracer="dummy", n_runners=int(sys.argv[2]), **settings).fit(agent, client)
"""
# Without `if __name__ == "__main__":`, and with an agent that nobody else could import.
PLAIN = (
    HEAD
    + """
FACTOR = 2

class Doubling(LitAgent):
    def training_rollout(self, task, rollout_id, resources):
        print("ran in", os.getpid())
        return FACTOR * task

print(fit(Doubling(), max_rollouts=2).rollouts)
"""
)
WORKING = (
    HEAD
    + """
@rollout
async def agent(task, llm):
    if task == "hang":
        pathlib.Path(f"hangs-{os.getpid()}").touch()
        await asyncio.Event().wait()
    if task == "block":
        pathlib.Path(f"hangs-{os.getpid()}").touch()
        threading.Event().wait()
    return 1.0

fit(agent)
"""
)
WORKING_SYNC = WORKING.replace("async def", "def").replace("await asyncio.Event()", "threading.Event()")


@pytest.fixture
def server() -> Iterator[AgentLightningServer]:
    server = AgentLightningServer(port=0)
    run_sync(server.start())
    run_sync(server.update_resources({"llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small")}))
    yield server
    run_sync(server.close())


def queue(server: AgentLightningServer, *tasks: Any) -> list[str]:
    return [run_sync(server.queue_task(task, "train")) for task in tasks]


def reward(server: AgentLightningServer, rollout_id: str) -> float | None:
    report = run_sync(server.poll_completed_rollout(rollout_id, PATIENCE))
    assert report is not None
    return report.final_reward


def until(reached: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not reached():
        assert time.monotonic() < give_up, f"{what} did not happen"
        pause.wait(0.02)


@contextlib.contextmanager
def script(
    folder: Path, text: str, server: AgentLightningServer, workers: int, *, graceful: float = PATIENCE
) -> Iterator[subprocess.Popen[str]]:
    """A script in a session of its own, as in a terminal of its own; everything in it is gone afterwards."""
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(path), server.endpoint, str(workers), str(graceful)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def session(leader: int) -> list[psutil.Process]:
    """The processes of a session that live."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_script_needs_no_guard_and_its_agent_travels(
    tmp_path: Path, server: AgentLightningServer, workers: int
):
    tasks = queue(server, *range(2 * workers))
    with script(tmp_path, PLAIN, server, workers) as process:
        out, err = end(process)
        assert process.returncode == 0
        assert "Traceback" not in err
        # Each process says it, where the agent is written.
        assert (
            err.count("script.py:16: DeprecationWarning: Doubling.training_rollout has the v0.1 form")
            == workers
        )
    assert [reward(server, each) for each in tasks] == [2.0 * number for number in range(2 * workers)]
    pids = {line.split()[2] for line in out.splitlines() if line.startswith("ran in")}
    assert len(pids) == workers
    assert (str(process.pid) in pids) is (workers == 1)
    assert f"{{'succeeded': {2 * workers}}}" in out


@pytest.mark.parametrize(("workers", "text"), [(1, WORKING_SYNC), (2, WORKING)])
def test_ctrl_c_ends_workers_that_wait_for_tasks(
    tmp_path: Path, server: AgentLightningServer, workers: int, text: str
):
    with script(tmp_path, text, server, workers) as process:
        for task in queue(server, *range(4)):
            assert reward(server, task) == 1.0
        os.killpg(process.pid, signal.SIGINT)
        _, err = end(process)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "interrupted; {'succeeded': 4}" in err
        until(lambda: session(process.pid) == [], "the end of all processes")


@pytest.mark.parametrize(("workers", "text"), [(1, WORKING), (2, WORKING_SYNC)])
def test_ctrl_c_lets_tasks_in_hand_end_and_then_drops_them(
    tmp_path: Path, server: AgentLightningServer, workers: int, text: str
):
    hanging = queue(server, *["hang"] * workers)
    with script(tmp_path, text, server, workers, graceful=0.2) as process:
        until(lambda: len(list(tmp_path.glob("hangs-*"))) == workers, "the start of the tasks")
        os.killpg(process.pid, signal.SIGINT)
        _, err = end(process)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "tasks in hand have 0.2 s to end" in err
        assert "SIGKILL" not in err
        until(lambda: session(process.pid) == [], "the end of all processes")
    assert [run_sync(server.get_completed_rollout(each)) for each in hanging] == [None] * workers


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, server: AgentLightningServer):
    queue(server, "hang", "hang")
    with script(tmp_path, WORKING, server, 2) as process:
        until(lambda: len(list(tmp_path.glob("hangs-*"))) == 2, "the start of the tasks")
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "interrupted; tasks in hand have 60 s to end" in first
        os.kill(process.pid, signal.SIGINT)
        end(process)
        assert process.returncode == 130
        until(lambda: session(process.pid) == [], "the end of all processes")


def test_a_worker_that_heeds_nothing_is_killed(tmp_path: Path, server: AgentLightningServer):
    queue(server, "block", "block")
    with script(tmp_path, WORKING, server, 2, graceful=0.2) as process:
        until(lambda: len(list(tmp_path.glob("hangs-*"))) == 2, "the start of the tasks")
        os.killpg(process.pid, signal.SIGINT)
        _, err = end(process)
        assert process.returncode == 130
        assert "its process was ended by SIGKILL" in err
        until(lambda: session(process.pid) == [], "the end of all processes")


def test_workers_leave_when_their_parent_is_killed(tmp_path: Path, server: AgentLightningServer):
    queue(server, "hang", "hang")
    with script(tmp_path, WORKING, server, 2) as process:
        until(lambda: len(list(tmp_path.glob("hangs-*"))) == 2, "the start of the tasks")
        process.kill()
        process.wait(PATIENCE)
        until(lambda: session(process.pid) == [], "the end of the workers")
