"""The runner of v0.1: ``runner.py ENDPOINT`` runs an agent with v0.1 signatures on the tasks of a server."""

from __future__ import annotations

import sys
from typing import Any

from lightning_core.client import AgentLightningClient
from lightning_core.litagent import LitAgent
from lightning_core.runner import AgentRunner


class Doubler(LitAgent[Any]):
    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:
        assert resources["main_llm"].model == "none"
        print(f"done {rollout_id}", flush=True)
        return 2.0 * task["number"]


if __name__ == "__main__":
    runner = AgentRunner(Doubler(), AgentLightningClient(sys.argv[1], poll_interval=0.05), "dummy")
    print("ready", flush=True)
    runner.iter()
