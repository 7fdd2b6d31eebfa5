"""A training script that the tests of resuming run in a process of its own, and end in the middle.

Arguments: the folder to work in, the algorithm, how to end (``kill``, ``interrupt``, ``error``, ``no``), after how many
agent calls, and the run to resume (``1`` for the newest) or ``no``. Prints the result as JSON.
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from lightning_core import LLM, BaseAlgorithm, PromptTemplate, Trainer, algo, rollout
from lightning_core.emitter import find_final_reward
from lightning_core.store.base import LightningStore

calls = 0


@rollout
async def agent(task: int, prompt_template: PromptTemplate, llm: LLM) -> float:
    """Notes each call, and ends the process when it is time."""
    global calls
    calls += 1
    with (folder / "calls").open("a") as file:
        file.write(f"{task} {prompt_template.template}\n")
    if calls == after:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
    skill = {"bad": 0.2, "fair": 0.5, "good": 0.9}[prompt_template.template]
    return float(random.Random(f"{prompt_template.template}{task}").random() < skill)


async def step(store: LightningStore, tasks: list[int]) -> float:
    """Run tasks and return the sum of their rewards."""
    rollouts = [await store.enqueue_rollout(task, mode="train") for task in tasks]
    done = await store.wait_for_rollouts(rollout_ids=[each.rollout_id for each in rollouts])
    rewards = [find_final_reward(await store.query_spans(each.rollout_id, "latest")) for each in done]
    return sum(reward or 0.0 for reward in rewards)


def fail_after(step: int) -> None:
    """Fail as an algorithm does, once."""
    if how == "error" and step == after:
        raise ZeroDivisionError("the algorithm has failed")


class Drawing(BaseAlgorithm):
    """Draws the tasks of each step, and changes the resources with what it has learnt; all of it is its state."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.step = 0
        self.total = 0.0

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.random.getstate()
        return {"step": self.step, "total": self.total, "random": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.total = state["step"], state["total"]
        version, internal, gauss = state["random"]
        self.random.setstate((version, tuple(internal), gauss))

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        store = self.get_store()
        while self.step < 5:
            tasks = [self.random.choice(train_dataset) for _ in range(4)]
            self.total += await step(store, tasks)
            fail_after(self.step)
            name = self.random.choice(["bad", "fair", "good"])
            self.best_resources = {**RESOURCES, "prompt_template": PromptTemplate(template=name)}
            await store.add_resources(self.best_resources)
            self.log_metrics(step=self.step, tasks=tasks, total=self.total, next=name)
            self.step += 1
            await self.checkpoint()


@algo
async def plain(store: LightningStore, algorithm: Any, train_dataset: list[int]) -> None:
    """Knows nothing of resuming."""
    for number in range(5):
        total = await step(store, train_dataset[: number + 1])
        fail_after(number)
        await store.add_resources({**RESOURCES, "prompt_template": PromptTemplate(template="good")})
        algorithm.log_metrics(step=number, total=total)


RESOURCES = {"llm": LLM(endpoint="http://127.0.0.1:1/v1", model="m")}
SEARCH = {"type": "search", "templates": ["bad", "fair", "good"], "rollouts_per_candidate": 6}
ALGORITHMS: dict[str, Any] = {
    "drawing": Drawing,
    "plain": plain,
    "search": {**SEARCH, "report": False},
    "baseline": {"type": "baseline", "n_epochs": 2},
}

if __name__ == "__main__":
    folder, name, how, after, resume = (
        Path(sys.argv[1]),
        sys.argv[2],
        sys.argv[3],
        int(sys.argv[4]),
        sys.argv[5],
    )
    trainer = Trainer(
        tracer="dummy",
        store=f"sqlite:///{folder}/runs.db",
        algorithm=ALGORITHMS[name],
        runner={"type": "agent", "concurrency": 2},
        strategy={"type": "shared-memory", "graceful_seconds": 0.1},
        initial_resources={**RESOURCES, "prompt_template": PromptTemplate(template="fair")},
    )
    result = trainer.fit(
        agent,
        list(range(24)),
        val_data=list(range(100, 108)),
        resume={"no": False, "1": True}.get(resume, resume),
    )
    print(result.model_dump_json())
