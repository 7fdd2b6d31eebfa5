"""Finds the prompt with which a small model does sums best. `nox -s quickstart` runs it; `--smoke` is shorter.

`--resume` goes on with the newest run that did not come to its end, and `--resume RUN` with that one.
"""

import argparse
import os
import re
import sys
import types
from typing import Any

from openai import AsyncOpenAI

from lightning_core import LLM, PromptTemplate, Trainer, rollout

# reasoning-gym imports pycosat, which needs a C compiler, for its zebra puzzles alone.
sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
import reasoning_gym  # noqa: E402

SUMS: dict[str, Any] = {"operators": ["+"], "max_terms": 2, "max_digits": 2, "allow_parentheses": False}
# A blank line ends a turn of the conversation: the user's, then the model's, and so on.
WORKED = "Calculate 6 + 10.\n\n6 + 10 = 16\n\nCalculate 47 + 8.\n\n47 + 8 = 55\n\nCalculate 25 + 31.\n\n25 + 31 = 56"
TEMPLATES = {
    "plain": "{question}",
    "step by step": "{question} Think step by step.",
    "number only": "{question} Reply with the number only.",
    "worked examples": WORKED + "\n\n{question}",
}


@rollout
async def solve(task: dict[str, str], prompt_template: PromptTemplate, llm: LLM) -> float:
    """Ask the model, take the last number of its answer, and let the task's own scorer judge it."""
    turns = prompt_template.format(question=task["question"]).split("\n\n")
    messages: Any = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    async with AsyncOpenAI(base_url=llm.get_base_url(), api_key=llm.api_key or "none") as client:
        answer = await client.chat.completions.create(
            model=llm.model, messages=messages, max_tokens=16, **llm.sampling_parameters
        )
    numbers = re.findall(r"-?\d+", answer.choices[0].message.content or "")
    score: Any = reasoning_gym.get_score_answer_fn("basic_arithmetic")
    return score(numbers[-1] if numbers else "", task)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--resume", nargs="?", const=True, metavar="RUN")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    sums = reasoning_gym.create_dataset("basic_arithmetic", size=300, seed=1, **SUMS)
    # Questions repeat, and those of the worked examples would give their answers away.
    answers = {one["question"]: one["answer"] for one in sums if one["question"] not in WORKED}
    tasks = [{"question": question, "answer": answer} for question, answer in answers.items()]
    search = {"type": "search", "templates": TEMPLATES, "temperatures": [0.0] if smoke else [0.0, 0.7]}
    trainer = Trainer(
        tracer="otel",
        store="sqlite:///quickstart.db",
        adapter="triplet",
        algorithm={**search, "rollouts_per_candidate": 2 if smoke else 6},
        hooks=["progress"],
        engine="endpoint" if "OPENAI_BASE_URL" in os.environ else "llamacpp",
        n_runners=4,
    )
    result = trainer.fit(solve, tasks[50:], val_data=tasks[: 4 if smoke else 50], resume=arguments.resume)
    print(f"\nTo see this run again: {sys.executable} -m lightning_core runs show --store {result.store}")
