"""A client: ``client.py ENDPOINT [NUMBER]`` works off tasks; after NUMBER of them it takes one and never reports."""

from __future__ import annotations

import os
import sys

from lightning_core.client import AgentLightningClient
from lightning_core.types import Rollout


def main(endpoint: str, before_it_hangs: int | None) -> None:
    client = AgentLightningClient(endpoint, poll_interval=0.05)
    done = 0
    print("ready", flush=True)
    while (task := client.poll_next_task()) is not None:
        resources = client.get_latest_resources()
        assert resources is not None
        if done == before_it_hangs:
            print(f"holds {task.rollout_id}", flush=True)
            sys.stdin.read()
        reward = 2.0 * task.input["number"]
        answer = client.post_rollout(
            Rollout(rollout_id=task.rollout_id, task=task, final_reward=reward, metadata={"pid": os.getpid()})
        )
        assert answer is not None, task
        assert answer["status"] == "success", answer
        done += 1
        print(f"done {task.rollout_id}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
