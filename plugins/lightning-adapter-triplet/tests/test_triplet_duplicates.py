"""Calls that a framework and its SDK record in places of their own, with calls at once that say the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

from lightning_adapter_triplet import TraceTripletAdapter

from lightning_core.types import Span

numbers = itertools.count(1)


def span(name: str, begin: float, end: float, parent: str | None = None, **attributes: Any) -> Span:
    number = next(numbers)
    return Span.from_attributes(
        name=name,
        attributes=attributes,
        rollout_id="r",
        attempt_id="a",
        sequence_id=number,
        trace_id="1" * 32,
        span_id=f"{number:016x}",
        parent_id=parent,
        start_time=begin,
        end_time=end,
    )


def sdk(begin: float, end: float, parent: str, question: str, answer: dict[str, Any]) -> Span:
    """What OpenInference writes of the openai package: the raw request and answer."""
    made = span("ChatCompletion", begin, end, parent)
    raw = {"id": f"chatcmpl-{made.span_id}", "choices": [{"message": answer, "finish_reason": "stop"}]}
    made.attributes.update(
        {
            "openinference.span.kind": "LLM",
            "input.value": json.dumps({"messages": [{"role": "user", "content": question}]}),
            "output.value": json.dumps(raw),
        }
    )
    return made


def framework(begin: float, end: float, parent: str, question: str, **answer: str) -> Span:
    """What it writes of LangChain."""
    said = {f"llm.output_messages.0.message.{key.replace('__', '.')}": value for key, value in answer.items()}
    return span(
        "ChatOpenAI",
        begin,
        end,
        parent,
        **{
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": question,
            "llm.output_messages.0.message.role": "assistant",
            **said,
        },
    )


def batch(*times: tuple[float, float], others: tuple[tuple[float, float], ...]) -> list[Span]:
    """Chains that run at once, each with the framework's span; the SDK's spans lie below the root."""
    root = span("rollout", 0, 100)
    spans = [root]
    for begin, end in times:
        chain = span("Chain", begin, end, root.span_id)
        spans += [chain, framework(begin + 1, end - 1, chain.span_id, "q", content="a")]
    message = {"role": "assistant", "content": "a"}
    spans += [sdk(begin, end, root.span_id, "q", message) for begin, end in others]
    return spans


def ids(spans: list[Span]) -> list[Any]:
    return [triplet.metadata["response_id"] for triplet in TraceTripletAdapter().adapt(spans)]


def test_a_batch_that_asks_the_same_several_times_gives_each_call_once() -> None:
    spans = batch((10, 50), (11, 60), (12, 40), others=((20, 35), (21, 45), (22, 55)))
    found = ids(spans)
    assert len(found) == len(set(found)) == 3
    assert None not in found


def test_a_call_beside_the_frameworks_own_remains() -> None:
    # Two chains, whose calls the SDK records; and one more call of the SDK itself, at the same time.
    found = ids(batch((10, 50), (11, 60), others=((20, 35), (21, 45), (22, 44))))
    assert len(found) == len(set(found)) == 3
    assert None not in found


def test_a_call_that_no_span_of_the_framework_encloses_remains() -> None:
    found = ids(batch((10, 50), (11, 60), others=((20, 35), (21, 45), (70, 80))))
    assert len(found) == 3
    found = ids(batch((10, 50), (11, 60), (12, 70), others=((20, 35), (21, 45))))
    assert len(found) == 3
    assert found.count(None) == 1


def test_empty_arguments_that_the_framework_leaves_out_are_the_same() -> None:
    root = span("rollout", 0, 100)
    function = {"name": "look", "arguments": "{}"}
    calls = [{"id": "c", "type": "function", "function": function}]
    chain = span("Chain", 10, 50, root.span_id)
    theirs = framework(
        11,
        49,
        chain.span_id,
        "q",
        tool_calls__0__tool_call__id="c",
        tool_calls__0__tool_call__function__name="look",
    )
    mine = sdk(20, 40, theirs.span_id, "q", {"role": "assistant", "content": None, "tool_calls": calls})
    assert ids([root, chain, theirs, mine]) == [f"chatcmpl-{mine.span_id}"]
