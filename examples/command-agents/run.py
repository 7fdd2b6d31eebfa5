"""Runs a program as the agent: `python examples/command-agents/run.py "node examples/command-agents/agent.mjs"`.

Without an argument it is agent.py. The model is that of OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL.
"""

import sys
from pathlib import Path

from lightning_core import CommandAgent, Trainer

TASKS = [
    {"question": f"What is {a} + {b}? Reply with the number only.", "answer": str(a + b)}
    for a, b in [(2, 2), (3, 4)]
]

if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else [sys.executable, Path(__file__).with_name("agent.py")]
    trainer = Trainer(tracer="dummy", engine="endpoint", algorithm="baseline", n_runners=2)
    result = trainer.fit(CommandAgent(command, timeout_seconds=60), TASKS)
    print(f"mean reward {result.metrics[0]['mean_reward']:.2f}")
