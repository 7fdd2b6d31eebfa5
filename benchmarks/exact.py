"""Token ids recorded by the LLM proxy against those that llama.cpp sampled: 1,000 completions, streamed and not.

``python -m benchmarks exact [--n=1000]``. The engine is asked each question twice with the same seed, one after the
other and with nothing kept from the call before: directly, where it lists the ids of its tokens, and through the proxy,
which records them. A completion counts as equal if all ids are the same, as missing if the proxy says that it does not
know them, and as wrong otherwise.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from benchmarks.measure import table

QUESTIONS = [
    "Tell me a story.",
    "Write a line with emojis: 👍🎉",
    "Translate to Japanese: good morning",
    "Calculate 12 + 30.",
    "What is a naïve café?",
]
TOKENS = 16


async def compare(count: int, *, streamed: bool, exact: bool) -> Counter[str]:
    """Compare so many completions, and count how they compare."""
    import aiohttp
    from lightning_llm_proxy import LLMProxy, Upstream

    from lightning_core import resolve
    from lightning_core.store import InMemoryLightningStore
    from lightning_core.types import LLMCall

    store = InMemoryLightningStore()
    rollout = await store.start_rollout({"task": 1})
    names = (rollout.rollout_id, rollout.attempt.attempt_id)
    found: Counter[str] = Counter()
    engine = resolve("engine", {"type": "llamacpp", "n_parallel": 1, "context": 512})
    with engine as llm, LLMProxy([Upstream.from_llm(llm, exact_streams=exact)], store) as proxy:
        url = proxy.as_resource().get_base_url(*names)
        async with aiohttp.ClientSession() as session:

            async def ask(base_url: str, **more: Any) -> bytes:
                async with session.post(f"{base_url}/chat/completions", json=more) as response:
                    assert response.status == 200, await response.text()
                    return await response.read()

            for number in range(count):
                request = {
                    "model": llm.model,
                    "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
                    "max_tokens": TOKENS,
                    "temperature": 1.0,
                    "seed": number,
                    "cache_prompt": False,
                }
                direct = json.loads(await ask(llm.endpoint, **request, verbose=True, return_tokens=True))
                await ask(url, **request, stream=streamed)
                span = (await store.query_spans(*names, offset=number))[0]
                response = LLMCall.from_span(span).response
                ids = response.token_ids.ids if response is not None else None
                same = ids == direct["__verbose"]["tokens"]
                found["missing" if ids is None else "equal" if same else "wrong"] += 1
    return found


def main() -> None:
    """Run the comparison."""
    numbers = [int(argument[4:]) for argument in sys.argv[1:] if argument.startswith("--n=")]
    count = numbers[0] if numbers else 1000
    rows: list[list[Any]] = []
    for name, streamed, exact in (
        ("whole", False, False),
        ("stream", True, False),
        ("stream, exact_streams", True, True),
    ):
        found = asyncio.run(compare(count, streamed=streamed, exact=exact))
        rows.append([name, *(str(found[key]) for key in ("equal", "missing", "wrong"))])
    table([f"{count} completions", "equal", "missing", "wrong"], rows)


if __name__ == "__main__":
    main()
