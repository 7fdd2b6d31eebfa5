"""The client-server strategy when processes die, hang, are interrupted, or lose their parent."""

from __future__ import annotations

import contextlib
import multiprocessing.spawn
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from lightning_store_http import ClientServerExecutionStrategy
from lightning_store_sqlite import SqliteLightningStore

from lightning_core import LLM, Hook, InMemoryLightningStore, LitAgent, Trainer, rollout
from lightning_core.algorithm import Baseline
from lightning_core.bridge import run_sync
from lightning_core.errors import ConfigurationError, ExecutionError, StoreUnavailableError
from lightning_core.execution.spawning import script_left_alone
from lightning_core.tracer import DummyTracer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes and looks at /proc")

PATIENCE = 60.0


def trainer(**settings: Any) -> Trainer:
    strategy = {"type": "cs", "start_method": "fork", "graceful_seconds": 0.5, **settings.pop("strategy", {})}
    given: dict[str, Any] = {
        "algorithm": "baseline",
        "tracer": "dummy",
        "initial_resources": {"llm": LLM(endpoint="http://localhost", model="none")},
        "strategy": strategy,
    }
    return Trainer(**{**given, **settings})


def until(reached: Callable[[], Any], what: str) -> Any:
    give_up = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (found := reached()):
        assert time.monotonic() < give_up, f"{what} did not happen"
        pause.wait(0.02)
    return found


@contextlib.contextmanager
def script(
    tmp_path: Path, text: str, *arguments: str, **environment: str
) -> Generator[subprocess.Popen[str]]:
    """A script in a session of its own, as in a terminal of its own; everything in it is gone afterwards."""
    path = tmp_path / f"script{len(list(tmp_path.glob('script*')))}.py"
    path.write_text(text, encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTNING_")}
    with subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=variables | environment | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        failed = True
        try:
            yield process
            failed = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if failed and not process.stderr.closed:
                sys.stdout.write(f"what the script wrote:\n{process.stderr.read()}")
            process.stdout.close()
            process.stderr.close()


HEAD = """
import asyncio, ctypes, os, pathlib, sys, threading
from lightning_core import LLM, Trainer, rollout

def trainer(**settings):
    strategy = {"type": "cs", "graceful_seconds": 0.5, "terminate_seconds": 2, **settings.pop("strategy", {})}
    return Trainer(**{
        "algorithm": "baseline", "tracer": "dummy", "n_runners": 2, "store": "sqlite:///runs.db",
        "initial_resources": {"llm": LLM(endpoint="http://localhost", model="none")}, "strategy": strategy, **settings
    })
"""
HANGING = (
    HEAD
    + """
@rollout
async def agent(task, llm):
    pathlib.Path(f"begun-{task}-{os.getpid()}").touch()
    await asyncio.Event().wait()
"""
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def begun(folder: Path, number: int) -> list[int]:
    """The process ids of the runners, once so many rollouts have begun."""
    found = until(
        lambda: files if len(files := list(folder.glob("begun-*"))) >= number else None,
        f"the start of {number} rollouts",
    )
    return sorted({int(path.name.rpartition("-")[2]) for path in found})


def stored(folder: Path) -> dict[str, int]:
    store = SqliteLightningStore(str(folder / "runs.db"))
    try:
        return {
            str(status): number for status, number in run_sync(store.statistics()).rollouts.items() if number
        }
    finally:
        run_sync(store.close())


# Death


def test_a_killed_runner_is_replaced_and_its_rollout_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    marker = tmp_path / "killed"

    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        if task == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    store = InMemoryLightningStore()
    result = trainer(store=store, algorithm=Baseline(), n_runners=1).fit(agent, [1, 2, 3, 4])
    assert result.rollouts == {"succeeded": 4}
    [third] = [found for found in run_sync(store.query_rollouts()) if found.input == 3]
    first, second = run_sync(store.query_attempts(third.rollout_id))
    assert (first.status, first.reason) == ("failed", "infrastructure")
    assert "was killed by SIGKILL" in first.metadata["error"]
    assert second.status == "succeeded"
    assert [
        record.getMessage() for record in caplog.records if "starting it again" in record.getMessage()
    ] != []
    assert caplog.text.count("was killed by SIGKILL") == 1


def test_a_runner_that_dies_again_and_again_ends_the_run_with_what_it_wrote_last():
    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        sys.stderr.write("no more memory on this device\n")
        sys.stderr.flush()
        os._exit(9)

    with pytest.raises(ExecutionError) as error:
        trainer(strategy={"max_restarts": 1}, algorithm=Baseline(max_attempts=5)).fit(agent, [1])
    assert "exited with code 9" in str(error.value)
    assert "max_restarts" in str(error.value)
    assert "no more memory on this device" in str(error.value)


def test_a_crash_in_native_code_shows_where():
    @rollout
    def agent(task: Any, llm: LLM) -> float:
        import ctypes

        return float(ctypes.string_at(0)[0])

    with pytest.raises(ExecutionError, match=r"was killed by SIGSEGV(?s:.)*Segmentation fault"):
        trainer(strategy={"max_restarts": 0}).fit(agent, [1])


def test_an_algorithm_in_a_process_that_dies_ends_the_run():
    class Dying(Baseline):
        async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        return 1.0

    with pytest.raises(ExecutionError, match=r"lightning-algorithm .* was killed by SIGKILL"):
        trainer(strategy={"main_process": "runner"}, algorithm=Dying()).fit(agent, [1])


def test_a_runner_that_is_stuck_in_native_code_is_ended_with_the_run(tmp_path: Path):
    """Nobody but the operating system can end it."""

    class Impatient(Baseline):
        async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            await self.get_store().enqueue_rollout(1)
            import asyncio

            await asyncio.to_thread(begun, tmp_path, 1)

    @rollout
    def agent(task: Any, llm: LLM) -> float:
        import ctypes

        (tmp_path / f"begun-{task}-{os.getpid()}").touch()
        ctypes.PyDLL(None).sleep(600)
        return 1.0

    result = trainer(algorithm=Impatient(), strategy={"terminate_seconds": 0.3}).fit(agent, [1])
    assert result.rollouts == {"cancelled": 1}
    assert not psutil.pid_exists(begun(tmp_path, 1)[0])


# Ctrl+C


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_ctrl_c_in_a_terminal_ends_with_130_and_no_traceback(tmp_path: Path, method: str):
    """Trap 30. The terminal sends SIGINT to every process of the group."""
    text = HANGING + f"\ntrainer(strategy={{'start_method': {method!r}}}).fit(agent, [1, 2])\n"
    with script(tmp_path, text) as process:
        runners = begun(tmp_path, 2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "interrupted" in errors
        assert stored(tmp_path) == {"cancelled": 2}
        assert not any(psutil.pid_exists(pid) for pid in runners)


def test_a_spawned_process_begins_with_ctrl_c_held_back(tmp_path: Path):
    """Or Ctrl+C at the start would fill the terminal with tracebacks; the first process is no exception."""
    text = (
        HEAD
        + """
import multiprocessing.util, signal

held = []
spawn = multiprocessing.util.spawnv_passfds

def watched(path, arguments, descriptors):
    if any("spawn_main" in os.fsdecode(argument) for argument in arguments):
        held.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return spawn(path, arguments, descriptors)

multiprocessing.util.spawnv_passfds = watched

@rollout
async def agent(task, llm):
    return 1.0

trainer(store="memory").fit(agent, [1])
print(held)
"""
    )
    with script(tmp_path, text) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert out == "[True, True]\n"


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path):
    text = HANGING + "\ntrainer(strategy={'graceful_seconds': 600}).fit(agent, [1, 2])\n"
    with script(tmp_path, text) as process:
        begun(tmp_path, 2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        line = process.stderr.readline()
        while "interrupted" not in line:
            assert line, "it ended before it said so"
            line = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert stored(tmp_path) == {"cancelled": 2}


# Orphans


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_runners_leave_when_their_parent_is_killed(tmp_path: Path, method: str):
    text = HANGING + f"\ntrainer(strategy={{'start_method': {method!r}}}).fit(agent, [1, 2])\n"
    with script(tmp_path, text) as process:
        runners = [psutil.Process(pid) for pid in begun(tmp_path, 2)]
        assert len(runners) == 2
        process.kill()
        process.wait(PATIENCE)
        _, alive = psutil.wait_procs(runners, timeout=PATIENCE)
        assert alive == []


def test_a_stuck_orphan_is_ended_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (
        HEAD
        + """
@rollout
def agent(task, llm):
    pathlib.Path(f"begun-{task}-{os.getpid()}").touch()
    ctypes.PyDLL(None).sleep(600)

trainer(n_runners=1).fit(agent, [1])
"""
    )
    bystander = (
        "import threading; name = 'lightning-runner-0'; print('ready', flush=True); threading.Event().wait()"
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with script(tmp_path, text) as process, script(tmp_path, bystander) as other:
        [pid] = begun(tmp_path, 1)
        orphan = psutil.Process(pid)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        Trainer.kill_orphaned_processes()
        assert orphan.is_running(), "its parent lives"
        process.kill()
        process.wait(PATIENCE)
        assert orphan.is_running()
        Trainer.kill_orphaned_processes()
        psutil.wait_procs([orphan], timeout=PATIENCE)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert other.poll() is None


# What travels


def test_what_a_script_defines_can_be_pickled_while_a_process_starts(monkeypatch: pytest.MonkeyPatch):
    """By the algorithm, which goes on in its thread while a runner is replaced."""
    defined = type("Defined", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Defined", defined, raising=False)
    with script_left_alone():
        assert pickle.loads(pickle.dumps(defined)) is defined
        told = multiprocessing.spawn.get_preparation_data("process")
    assert not any(name.startswith("init_main") for name in told)


def test_a_script_without_a_guard_works(tmp_path: Path):
    """Trap 29. Its functions go by value, and it is not run again."""
    text = (
        HEAD
        + """
print("once")
factor = 2.0

@rollout
async def agent(task, llm):
    return task * factor

print(trainer(store="memory").fit(agent, [1, 2, 3]).metrics[0]["mean_reward"])
"""
    )
    with script(tmp_path, text) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert output == "once\n4.0\n", errors
    assert process.returncode == 0
    assert errors == ""


CLIENT_AT_THE_TOP = (
    HEAD
    + """
lock = threading.Lock()  # stands for a client at the top of the script

@rollout
async def agent(task, llm):
    with lock:
        return task
"""
)


def test_a_script_with_what_cannot_be_pickled_at_its_top_is_run_again_for_it(tmp_path: Path):
    text = CLIENT_AT_THE_TOP + (
        "\nif __name__ == '__main__':\n"
        "    print(trainer(store='memory').fit(agent, [1, 2, 3]).metrics[0]['mean_reward'])\n"
    )
    with script(tmp_path, text) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert output == "2.0\n", errors


def test_such_a_script_without_a_guard_fails_with_one_clear_message(tmp_path: Path):
    """Trap 29: neither a fork bomb nor a flood of tracebacks."""
    with script(tmp_path, CLIENT_AT_THE_TOP + "\ntrainer(n_runners=1).fit(agent, [1])\n") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert 'if __name__ == "__main__":' in errors.splitlines()[-1] or 'if __name__ == "__main__":' in errors
    assert errors.count("Traceback (most recent call last)") <= 3


class Connected(Hook):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Connection(LitAgent[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("argument", "settings"),
    [("tracer", {"tracer": DummyTracer()}), (r"hooks\[1\]", {"hooks": ["progress", Connected()]})],
)
def test_a_live_part_that_cannot_travel_is_named_with_the_way_out(argument: str, settings: dict[str, Any]):
    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        return 1.0

    with pytest.raises(
        ConfigurationError, match=rf"^{argument}: .* cannot be sent to another process .*give it by"
    ):
        trainer(strategy={"start_method": "spawn"}, **settings).fit(agent, [1])


def test_an_agent_that_cannot_travel_is_named_with_the_way_out():
    with pytest.raises(
        ConfigurationError, match=r"^the agent: this Connection cannot be sent .*__getstate__"
    ):
        trainer(strategy={"start_method": "spawn"}).fit(Connection(), [1])


def test_a_forked_process_takes_what_cannot_be_pickled():
    lock = threading.Lock()

    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        with lock:
            return 1.0

    assert trainer().fit(agent, [1]).rollouts == {"succeeded": 1}


# Two machines

SIDES = (
    HEAD
    + """
import time

@rollout
async def agent(task, llm):
    return task

result = trainer(store="memory").fit(agent, [1, 2, 3])
print(result.status, result.rollouts.get("succeeded"))
"""
)


def test_one_script_is_either_side(tmp_path: Path):
    """Roles, host, port and token from the environment; the runners may come first."""
    environment = {
        "LIGHTNING_CORE_SERVER_PORT": str(free_port()),
        "LIGHTNING_CORE_STORE_TOKEN": "known-to-both",
    }
    with (
        script(tmp_path, SIDES, LIGHTNING_CORE_ROLE="runner", **environment) as runners,
        script(tmp_path, SIDES, LIGHTNING_CORE_ROLE="algorithm", **environment) as algorithm,
    ):
        output, errors = algorithm.communicate(timeout=PATIENCE)
        assert output == "succeeded 3\n", errors
        output, errors = runners.communicate(timeout=PATIENCE)
        assert runners.returncode == 0, errors
        assert output == "succeeded 3\n", errors
        assert "Traceback" not in errors


def test_a_side_alone_needs_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LIGHTNING_CORE_STORE_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="LIGHTNING_CORE_STORE_TOKEN"):
        ClientServerExecutionStrategy(role="runner")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_runners": 0}, "n_runners"),
        ({"role": "server"}, "role must be one of both, algorithm, runner"),
        ({"start_method": "thread"}, "start_method must be one of spawn, fork, forkserver"),
        ({"main_process": "store"}, "main_process must be"),
        (
            {"role": "algorithm", "token": "12345678", "main_process": "runner"},
            "main_process='runner' is for",
        ),
        ({"role": "runner", "token": "12345678", "server_port": 0}, "needs the port"),
        ({"server_port": 70000}, "server_port"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        ClientServerExecutionStrategy(**settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LIGHTNING_CORE_ROLE", "server", "LIGHTNING_CORE_ROLE must be one of"),
        ("LIGHTNING_CORE_SERVER_PORT", "http", "LIGHTNING_CORE_SERVER_PORT is no number"),
    ],
)
def test_variables_that_make_no_sense_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        ClientServerExecutionStrategy()


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("taken", StoreUnavailableError, "another server may be running there"),
        ({"server_host": "no.such.host.invalid", "token": "12345678"}, StoreUnavailableError, "no interface"),
        ({"server_host": "0.0.0.0"}, ConfigurationError, "give it a token"),
        ({"token": "short"}, ConfigurationError, "at least 8 characters"),
    ],
)
def test_a_server_that_cannot_listen_leaves_no_failed_run_behind(
    address: Any, error: type[Exception], message: str
):
    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        return 1.0

    store = InMemoryLightningStore()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = {"server_port": other.getsockname()[1]} if address == "taken" else address
        with pytest.raises(error, match=message):
            trainer(store=store, strategy=settings).fit(agent, [1])
    assert run_sync(store.query_runs()) == []


def test_runners_leave_when_the_other_side_is_gone_for_good(tmp_path: Path):
    text = (
        HANGING
        + """
trainer(
    store="memory", strategy={"retry_seconds": 3}, runner={"type": "agent", "heartbeat_interval": 0.5}
).fit(agent, [1, 2])
"""
    )
    environment = {
        "LIGHTNING_CORE_SERVER_PORT": str(free_port()),
        "LIGHTNING_CORE_STORE_TOKEN": "known-to-both",
    }
    with (
        script(tmp_path, text, LIGHTNING_CORE_ROLE="runner", **environment) as runners,
        script(tmp_path, text, LIGHTNING_CORE_ROLE="algorithm", **environment) as algorithm,
    ):
        processes = [psutil.Process(pid) for pid in begun(tmp_path, 2)]
        algorithm.kill()
        algorithm.wait(PATIENCE)
        _, errors = runners.communicate(timeout=PATIENCE)
        assert runners.returncode == 0, errors
        assert not any(process.is_running() for process in processes)


def test_a_process_that_does_not_start_is_an_error_with_its_name():
    class Slow(LitAgent[Any]):
        def __setstate__(self, state: Any) -> None:
            threading.Event().wait(600)

    with pytest.raises(ExecutionError, match=r"lightning-runner-0 \(process \d+\) did not start within 2 s"):
        trainer(strategy={"start_method": "forkserver", "startup_seconds": 2.0}).fit(Slow(), [1])


class Looking(LitAgent[str]):
    """Kills one of two runners; the one in its place notes what it has of the server, as the other is connected."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def rollout(self, task: str, resources: Any, rollout: Any) -> float:
        stays, killed, held = (self.folder / name for name in ("stays", "killed", "held"))
        if task == "stay":
            stays.touch()
            until(held.exists, "the look of the other runner")
            return 1.0
        until(stays.exists, "the start of the other rollout")
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # Of this run's server alone: the tests around this one have servers of their own in the process that forks.
        port = urlsplit(self.get_runner().get_store().location).port
        sockets = psutil.Process().net_connections("inet")
        assert port in [one.raddr.port for one in sockets if one.raddr], "its own connection to the server"
        found = sorted(one.status for one in sockets if one.laddr and one.laddr.port == port)
        held.write_text(" ".join(found), encoding="utf-8")
        return 1.0


def test_a_forked_process_lets_go_of_the_servers_sockets(tmp_path: Path):
    """Or a client would wait for an answer on a connection that the server has closed."""
    algorithm = Baseline(max_attempts=2)
    result = trainer(algorithm=algorithm, n_runners=2).fit(Looking(tmp_path), ["stay", "look"])
    assert (tmp_path / "held").read_text(encoding="utf-8") == ""
    assert result.rollouts == {"succeeded": 2}
