"""Token ids recorded by the LLM proxy against those that llama.cpp sampled: 1,000 completions, streamed and not.

``python -m benchmarks exact [--n=1000]``. The engine is asked each question with the same seed, one call after another:
directly, where it lists the ids of its tokens, and then in each form by way of the proxy, which records them. It has
read the prompt before the first of these calls, and reads no other in between, so that all of them begin from the same
state. A completion counts as equal if all ids are the same, as missing if the proxy says that it does not know them,
and as wrong otherwise.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
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
FORMS = {"whole": (False, False), "stream": (True, False), "stream, exact_streams": (True, True)}
"""Whether the client asks for a stream, and whether the upstream has ``exact_streams``."""
REPORT_EVERY = 50


async def compare(count: int) -> dict[str, Counter[str]]:
    """Compare so many completions in each form, and count how they compare and the tokens of those that are equal."""
    import aiohttp
    from lightning_llm_proxy import LLMProxy, Upstream

    from lightning_core import resolve
    from lightning_core.store import InMemoryLightningStore
    from lightning_core.types import LLMCall

    found = {form: Counter[str]() for form in FORMS}
    store = InMemoryLightningStore()
    rollouts = {form: await store.start_rollout({"form": form}) for form in FORMS}
    attempts = {form: (each.rollout_id, each.attempt.attempt_id) for form, each in rollouts.items()}
    begin = time.monotonic()
    engine: Any = resolve("engine", {"type": "llamacpp", "n_parallel": 1, "context": 512})
    with (
        engine as llm,
        LLMProxy([Upstream.from_llm(llm, exact_streams=False)], store) as plain,
        LLMProxy([Upstream.from_llm(llm, exact_streams=True)], store) as exact,
    ):
        proxies = {form: exact if exactly else plain for form, (_, exactly) in FORMS.items()}
        urls = {form: proxies[form].as_resource().get_base_url(*attempts[form]) for form in FORMS}
        # Connections that wait for long are closed by the servers.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:

            async def ask(base_url: str, **request: Any) -> bytes:
                async with session.post(f"{base_url}/chat/completions", json=request) as response:
                    assert response.status == 200, await response.text()
                    return await response.read()

            asked: str | None = None
            for number in range(count):
                question = QUESTIONS[number * len(QUESTIONS) // count]
                request = {
                    "model": llm.model,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": TOKENS,
                    "temperature": 1.0,
                    "seed": number,
                }
                if question != asked:
                    await ask(llm.endpoint, **request)
                    asked = question
                direct = json.loads(await ask(llm.endpoint, **request, verbose=True, return_tokens=True))
                sampled: list[int] = direct["__verbose"]["tokens"]
                for form, (streamed, _) in FORMS.items():
                    await ask(urls[form], **request, stream=streamed)
                    (span,) = await store.query_spans(*attempts[form], offset=number)
                    response = LLMCall.from_span(span).response
                    ids = response.token_ids.ids if response is not None else None
                    found[form]["missing" if ids is None else "equal" if ids == sampled else "wrong"] += 1
                    found[form]["tokens"] += len(sampled) if ids == sampled else 0
                if (number + 1) % REPORT_EVERY == 0:
                    said = "; ".join(f"{form}: {dict(counts)}" for form, counts in found.items())
                    seconds = time.monotonic() - begin
                    print(
                        f"{number + 1} of {count} after {seconds:.0f} s: {said}", file=sys.stderr, flush=True
                    )
    return found


def main() -> None:
    """Run the comparison."""
    numbers = [int(argument[4:]) for argument in sys.argv[1:] if argument.startswith("--n=")]
    count = numbers[0] if numbers else 1000
    found = asyncio.run(compare(count))
    columns = ("equal", "missing", "wrong", "tokens")
    table(
        [f"{count} completions", "equal", "missing", "wrong", "tokens of the equal ones"],
        [[form, *(str(counts[column]) for column in columns)] for form, counts in found.items()],
    )


if __name__ == "__main__":
    main()
