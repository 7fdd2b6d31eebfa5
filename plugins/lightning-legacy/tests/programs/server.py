"""A server: ``server.py STORE PORT TASKS`` queues tasks once it reads a line; ``server.py STORE PORT`` collects.

The second kind prints each result as a line of JSON, and ``round`` whenever it has collected what there was.
"""

from __future__ import annotations

import asyncio
import sys

from lightning_core.server import AgentLightningServer
from lightning_core.types import LLM


async def main(store: str, port: int, tasks: int | None) -> None:
    server = AgentLightningServer(port=port, task_timeout_seconds=3.0, max_requeues=1000, store=store)
    await server.start()
    print(f"port {server.port}", flush=True)
    if tasks is not None:
        await server.update_resources({"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="none")})
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(server.queue_task({"number": number}, "train") for number in range(tasks)))
        print("queued", flush=True)
        await server.run_forever()
    while True:
        for result in await server.retrieve_completed_rollouts():
            print(result.model_dump_json(), flush=True)
        print("round", flush=True)
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None))
