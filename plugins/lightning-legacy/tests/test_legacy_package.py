"""The package keeps the contract of a plugin package, and its doors open onto it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_core.testing import PluginPackageConformance


class TestPackage(PluginPackageConformance):
    distribution = "lightning-legacy"


@pytest.mark.parametrize(
    ("door", "name"),
    [
        ("client", "AgentLightningClient"),
        ("client", "DevTaskLoader"),
        ("server", "AgentLightningServer"),
        ("server", "ServerDataStore"),
    ],
)
def test_the_doors_of_the_core_open_onto_it(door: str, name: str):
    code = f"from lightning_core.{door} import {name}; print({name}.__module__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("lightning_legacy.")
    assert result.stderr == ""


def test_a_program_that_closes_nothing_ends_without_a_complaint():
    code = """
import asyncio, atexit

@atexit.register
def look():
    from lightning_legacy import sessions
    print(sessions._session.closed)

# What is registered now is done before.
from lightning_legacy import AgentLightningClient, AgentLightningServer
from lightning_core.types import Rollout

async def main():
    server = AgentLightningServer(port=0)
    await server.start()
    await server.queue_task(1)
    return server

server = asyncio.run(main())
client = AgentLightningClient(server.endpoint)
client.post_rollout(Rollout(rollout_id=client.poll_next_task().rollout_id))
"""
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_client_survives_a_fork():
    code = """
import asyncio, os
from lightning_legacy import AgentLightningClient, AgentLightningServer

server = AgentLightningServer(port=0)
asyncio.run(server.start())
ids = [asyncio.run(server.queue_task(number)) for number in range(3)]
client = AgentLightningClient(server.endpoint)
assert client.poll_next_task().rollout_id == ids[0]
child = os.fork()
if child == 0:
    try:
        task = client.poll_next_task()
        print(task.rollout_id == ids[1], flush=True)
    finally:
        import gc
        gc.collect()
        os._exit(0)
os.waitpid(child, 0)
assert client.poll_next_task().rollout_id == ids[2]
"""
    # Python itself complains of a fork where there are threads.
    warnings = ["-W", "always", "-W", "ignore:This process:DeprecationWarning"]
    result = subprocess.run(
        [sys.executable, *warnings, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")
