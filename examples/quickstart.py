"""Finds the prompt with which a small model does sums best: a real model, real tasks, every part chosen by name.

``nox -s quickstart`` installs what it needs and runs it; ``--smoke`` runs a shorter form.
"""

import os
import re
import sys
import types

from openai import AsyncOpenAI

from lightning_core import LLM, PromptTemplate, Trainer, rollout

# reasoning-gym imports pycosat, which needs a C compiler, for its zebra puzzles alone.
sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
import reasoning_gym  # noqa: E402

SUMS = {"operators": ["+"], "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "allow_parentheses": False}
# Blank lines part the turns of the conversation: the user's, the model's, the user's, and so on.
WORKED = "Calculate 6 + 10.\n\n6 + 10 = 16\n\nCalculate 47 + 8.\n\n47 + 8 = 55\n\nCalculate 25 + 31.\n\n25 + 31 = 56\n\n"
TEMPLATES = {
    "plain": "{question}",
    "step by step": "{question} Think step by step.",
    "number only": "{question} Reply with the number only.",
    "answers": "Calculate 6 + 10.\n\n16\n\nCalculate 47 + 8.\n\n55\n\n{question}",
    "worked": WORKED + "{question}",
}
score = reasoning_gym.get_score_answer_fn("basic_arithmetic")


@rollout
async def solve(task: dict, prompt_template: PromptTemplate, llm: LLM) -> float:
    """Ask the model, take the last number of its answer, and let the task's own scorer judge it."""
    turns = prompt_template.format(question=task["question"]).split("\n\n")
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    async with AsyncOpenAI(base_url=llm.get_base_url(), api_key=llm.api_key or "none") as client:
        answer = await client.chat.completions.create(
            model=llm.model, messages=messages, max_tokens=16, **llm.sampling_parameters
        )
    numbers = re.findall(r"-?\d+", answer.choices[0].message.content or "")
    return score(numbers[-1] if numbers else "", task)


if __name__ == "__main__":
    smoke = "--smoke" in sys.argv
    tasks = reasoning_gym.create_dataset("basic_arithmetic", seed=1, size=300, **SUMS)
    # Questions repeat; those that are held out must not be seen before.
    answers = {task["question"]: task["answer"] for task in tasks}
    data = [{"question": question, "answer": answer} for question, answer in answers.items()]
    val, train = data[: 8 if smoke else 60], data[60:]
    trainer = Trainer(
        tracer="otel",
        store="sqlite:///quickstart.db",
        adapter="triplet",
        algorithm={"type": "search", "templates": TEMPLATES, "temperatures": [0.0] if smoke else [0.0, 0.7],
                   "rollouts_per_candidate": 4 if smoke else 12},
        hooks=["progress"],
        engine="endpoint" if "OPENAI_BASE_URL" in os.environ else "llamacpp",
        runner={"type": "agent", "concurrency": 4},
    )
    result = trainer.fit(solve, train, val_data=val)
    print(f"\nrun {result.run_id} is stored in {result.store}; see it again with")
    print(f"lightning-core runs show --store {result.store}")
