"""The models' base: putting off the building of validators must not be seen."""

from __future__ import annotations

import subprocess
import sys

# Many threads use models for the first time at once, as runners do.
FIRST_USE = """
import sys, threading
from lightning_core import InMemoryLightningStore
from lightning_core.types import Attempt, RolloutV2, Span, Task

InMemoryLightningStore()
sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
wrong = []

def use():
    together.wait()
    span = Span(rollout_id="r", attempt_id="a", trace_id="0" * 32, span_id="0" * 16, name="n")
    attempt = Attempt(rollout_id="r", attempt_id="a", sequence_id=1, start_time=1.0)
    made = (span, attempt, RolloutV2(rollout_id="r", input=1, start_time=1.0), Task(rollout_id="r", input=1))
    for model in made:
        if getattr(model, "rollout_id", None) != "r":
            wrong.append(model)
        try:
            type(model).model_validate_json(model.model_dump_json())
        except Exception as error:
            wrong.append(error)

threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(repr(wrong[:3]) if wrong else 0)
"""


def test_models_may_be_used_first_by_many_threads_at_once():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
