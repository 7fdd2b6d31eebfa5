"""Import time, in CPU milliseconds of whole processes, and modules loaded."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.measure import table

CASES = {
    "nothing": "pass",
    "import lightning_core": "import lightning_core",
    # As they are used: pydantic itself imports next to nothing until a model is made.
    "its dependencies alone": "import pluggy, opentelemetry.sdk.trace\nfrom pydantic import BaseModel, Field",
    "Trainer and rollout": "from lightning_core import Trainer, rollout",
}


def process(code: str) -> tuple[float, int]:
    """CPU seconds of a process that runs ``code``, and how many modules it has loaded."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\nimport sys; print(len(sys.modules))"],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        modules = int(child.stdout.read())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{code!r} failed")
    return usage.ru_utime + usage.ru_stime, modules


def main() -> None:
    """Print the table, and how soon the first rollout ends."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    modules: dict[str, int] = {}
    for number in range(16):
        for name, code in CASES.items():
            cpu, modules[name] = process(code)
            if number:
                times[name].append(cpu)
    medians = {name: statistics.median(each) for name, each in times.items()}
    base = medians["nothing"]
    dependencies = medians["its dependencies alone"]
    table(
        ["process", "CPU ms", "above nothing, ms", "of its dependencies", "modules"],
        [
            [name, seconds * 1e3, (seconds - base) * 1e3, f"{seconds / dependencies:.2f}", str(modules[name])]
            for name, seconds in medians.items()
        ],
    )
    first = [first_rollout() for _ in range(5)]
    print(f"\nfirst rollout ended {statistics.median(first):.3g} s after the process start")


FIRST = """
from lightning_core import LLM, Trainer, rollout

@rollout
async def agent(task, llm):
    import time
    print(time.time(), flush=True)
    return 1.0

Trainer(algorithm="baseline", initial_resources={"llm": LLM(endpoint="http://localhost", model="m")}).fit(agent, [1])
"""


def first_rollout() -> float:
    """Seconds from the start of a process to the end of its first rollout's agent."""
    begin = time.time()
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0]) - begin
