"""``lightning-core store serve``."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from lightning_store_http import LightningStoreClient

from lightning_core.cli import main

_URL = re.compile(r"http://127\.0\.0\.1:\d+")


@contextmanager
def serving(*arguments: object, token: str | None = None):
    """Start the command; gives the process, its URL, and the rest of what it says before it serves."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIGHTNING_CORE")}
    if token is not None:
        environment["LIGHTNING_CORE_STORE_TOKEN"] = token
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_core", "store", "serve", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        found = _URL.search(lines[0])
        assert found, [*lines, process.stderr.read()]
        yield process, found[0], "".join(lines)
    finally:
        watchdog.cancel()
        process.kill()
        with process:
            pass


def stop(process: subprocess.Popen[str], number: int) -> str:
    process.send_signal(number)
    # Not by communicate(), which overlooks what readline() has read ahead.
    output, errors = process.stdout.read(), process.stderr.read()
    assert process.wait(60) == 0
    assert errors == ""
    return output


@pytest.mark.skipif(os.name != "posix", reason="signals are sent in the way of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_store_is_served_until_a_signal_comes(tmp_path, number):
    """Trap 30: with no traceback, though a client waits; and what was stored is there the next time."""
    pytest.importorskip("lightning_store_sqlite")
    store, token_file = f"sqlite:///{tmp_path}/runs.db", tmp_path / "token"
    with serving("--store", store, "--token-file", token_file) as (process, url, said):
        token = token_file.read_text().strip()
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert token not in said
        assert f"cat {token_file}" in said
        client = LightningStoreClient(url, token=token, retry_seconds=0.1)

        async def use() -> None:
            await client.enqueue_rollout(1)
            waiting = asyncio.create_task(client.dequeue_rollouts(wait=60, run_id="none"))
            await client.statistics()
            await asyncio.to_thread(lambda: stop(process, number))
            with pytest.raises(OSError, match="could not be reached"):
                await waiting
            await client.close()

        asyncio.run(use())
    with serving("--store", store, "--token-file", token_file) as (process, url, _):
        client = LightningStoreClient(url, token=token)

        async def read() -> None:
            assert [rollout.input for rollout in await client.query_rollouts()] == [1]
            await client.close()

        asyncio.run(read())
        assert stop(process, number) == "stopping\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are sent in the way of POSIX")
def test_a_token_that_nobody_gave_is_shown_and_one_that_was_given_is_not():
    with serving("--store", "memory") as (process, url, said):
        token = re.search(r"LIGHTNING_CORE_STORE_TOKEN=(\S+)", said)
        assert token
        client = LightningStoreClient(url, token=token[1])
        assert not client.capabilities.durable
        assert "keeps nothing beyond its process" in stop(process, signal.SIGTERM)
    with serving("--store", "memory", token="given-token") as (process, _, said):
        assert "given-token" not in said


def test_what_cannot_be_served_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTNING_CORE_STORE_TOKEN", raising=False)
    runner = CliRunner()
    wide = runner.invoke(main, ["store", "serve", "--store", "memory", "--host", "0.0.0.0"])
    assert wide.exit_code == 1
    assert "--token-file" in wide.output
    empty = tmp_path / "empty"
    empty.touch()
    answer = runner.invoke(main, ["store", "serve", "--store", "memory", "--token-file", str(empty)])
    assert answer.exit_code == 1
    assert "is empty" in answer.output
    lost = tmp_path / "no" / "token"
    answer = runner.invoke(main, ["store", "serve", "--store", "memory", "--token-file", str(lost)])
    assert answer.exit_code == 1
    assert str(lost) in answer.output


@pytest.mark.parametrize(
    "command", [("runs", "list"), ("store", "vacuum", "--before", "2020-01-01", "--yes")]
)
def test_a_server_that_is_not_there_is_not_waited_for_as_in_a_run(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_core.cli.stores._PATIENCE_SECONDS", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = CliRunner().invoke(main, [*command, "--store", url])
    assert result.exit_code == 1
    assert f"Error: the server at {url} could not be reached for 0.3 s: " in result.output
