"""The whole loop: rollouts per second of an agent that does nothing, with one and four runners."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.measure import table
from lightning_core import LLM, Trainer, rollout
from lightning_core.bridge import run_sync
from lightning_core.plugin import resolve

NUMBER = 3_000


@rollout
async def agent(task: Any, llm: LLM) -> float:
    """Do nothing."""
    return 1.0


def run(tracer: str, n_runners: int) -> tuple[float, int]:
    """Rollouts per second, and how many were lost or lack their spans."""
    trainer = Trainer(
        tracer=tracer,
        algorithm="baseline",
        n_runners=n_runners,
        initial_resources={"llm": LLM(endpoint="http://localhost/v1", model="m")},
    )
    begin = time.perf_counter()
    result = trainer.fit(agent, list(range(NUMBER)))
    seconds = time.perf_counter() - begin
    spans = run_sync(trainer.store.statistics()).spans
    expected = NUMBER * (2 if tracer == "otel" else 1)
    return NUMBER / seconds, NUMBER - result.rollouts.get("succeeded", 0) + abs(expected - spans)


def main() -> None:
    """Run the benchmark."""
    rows = []
    for tracer in ("dummy", "otel"):
        try:
            resolve("tracer", tracer)
        except LookupError as error:
            print(f"{tracer}: {error}")
            continue
        rates: dict[int, list[float]] = {1: [], 4: []}
        lost = 0
        for number in range(6):
            for n_runners, each in rates.items():
                rate, missing = run(tracer, n_runners)
                lost += missing
                if number:
                    each.append(rate)
        rows.append([tracer, *(statistics.median(each) for each in rates.values()), str(lost)])
    table(["tracer", "rollouts/s, 1 runner", "rollouts/s, 4 runners", "rollouts or spans lost"], rows)
