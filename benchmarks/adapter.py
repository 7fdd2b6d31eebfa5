"""Adapters: spans a second, and the cost of a span in traces of 1,000 and of 10,000 (linear: the same)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.measure import in_turns, table
from lightning_core.adapter import (
    LlmProxyTripletAdapter,
    TraceAdapter,
    TraceMessagesAdapter,
    TraceTripletAdapter,
)
from lightning_core.execution.garbage import rare_collections
from lightning_core.types import Span, SpanAttributeNames, SpanNames

SIZES = (1_000, 10_000)
ROUNDS = 5

Named = tuple[str, Mapping[str, Any], int | None]
"""Name, attributes, and the place of the parent."""


def indexed(number: int) -> dict[str, Any]:
    """A call as Traceloop and AgentOps record it."""
    return {
        "gen_ai.request.model": "m",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": f"question {number}",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": f"answer {number}",
    }


def raw(number: int, *, tokens: int = 0) -> dict[str, Any]:
    """A call as OpenInference and gateways record it, with the raw request and answer; a gateway's with ``tokens``."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": f"answer {number}"}}
    answer: dict[str, Any] = {"id": f"chatcmpl-{number}", "model": "m", "choices": [choice]}
    own: dict[str, Any] = {}
    if tokens:
        answer["prompt_token_ids"] = list(range(2 * tokens))
        choice["token_ids"] = list(range(tokens))
        entries = [{"token": " word", "logprob": -0.25, "bytes": [32, 119], "top_logprobs": []}] * tokens
        choice["logprobs"] = {"content": entries}
        own = {"lightning.llm_proxy.status": 200, "lightning.llm_proxy.total_seconds": 0.5}
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "temperature": 1.0,
    }
    return {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(request),
        "output.value": json.dumps(answer),
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.output_tokens": tokens,
        **own,
    }


def flat(size: int) -> Sequence[Named]:
    """Calls side by side."""
    return [("chat m", indexed(number), size) for number in range(size)] + [("rollout", {}, None)]


def nested(size: int) -> Sequence[Named]:
    """Each span inside another, every second a call."""
    return [
        ("chat m" if number % 2 else "step", indexed(number) if number % 2 else {}, number + 1)
        for number in range(size)
    ] + [("rollout", {}, None)]


def agents(size: int) -> Sequence[Named]:
    """Agents with tools: a call that a framework and an SDK record, a tool, a call, and a reward for each."""
    spans: list[Named] = []
    for number in range(0, size, 6):
        place = len(spans)
        spans += [
            ("ChatCompletion", raw(number), place + 1),
            ("ChatModel", indexed(number), place + 5),
            ("execute_tool search", {"gen_ai.operation.name": "execute_tool"}, place + 5),
            ("ChatCompletion", raw(number + 1), place + 5),
            (SpanNames.REWARD.value, {SpanAttributeNames.REWARD.value: 0.5}, place + 5),
            (
                "invoke_agent solver",
                {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "solver"},
                -1,
            ),
        ]
    root = len(spans)
    spans = [(name, attributes, root if parent == -1 else parent) for name, attributes, parent in spans]
    return [*spans, ("rollout", {}, None)]


def gateway(size: int) -> Sequence[Named]:
    """Calls through a gateway, with 64 token ids and 32 log-probabilities each, and a reward for each tenth."""
    return [
        (SpanNames.REWARD.value, {SpanAttributeNames.REWARD.value: 0.5}, None)
        if number % 10 == 9
        else ("chat m", raw(number, tokens=32), None)
        for number in range(size)
    ]


def trace(named: Sequence[Named]) -> list[Span]:
    """Make the spans of one attempt, which end one after another."""
    return [
        Span.from_attributes(
            name=name,
            attributes=attributes,
            rollout_id="ro",
            attempt_id="at",
            trace_id="ab" * 16,
            span_id=f"{place + 1:016x}",
            parent_id=f"{parent + 1:016x}" if parent is not None else None,
            sequence_id=place + 1,
            start_time=1_700_000_000.0 + place,
            end_time=1_700_000_000.5 + place,
        )
        for place, (name, attributes, parent) in enumerate(named)
    ]


def main() -> None:
    """Run the benchmark, with the garbage collector as it is in a run."""
    with rare_collections():
        compare()


def compare() -> None:
    """Measure every adapter on the traces that it is for."""
    adapters: list[tuple[str, TraceAdapter[list[Any]], list[Callable[[int], Sequence[Named]]]]] = [
        ("triplet", TraceTripletAdapter(), [flat, nested, agents, gateway]),
        ("triplet, first_sibling", TraceTripletAdapter(reward_match="first_sibling"), [flat, nested, agents]),
        ("llm-proxy-triplet", LlmProxyTripletAdapter(), [gateway]),
        ("messages", TraceMessagesAdapter(), [flat, nested, agents, gateway]),
        ("messages, per conversation", TraceMessagesAdapter(per="conversation"), [flat, agents]),
    ]
    rows: list[list[Any]] = []
    for name, adapter, shapes in adapters:
        for shape in shapes:
            traces = [trace(shape(size)) for size in SIZES]
            seconds = in_turns(*[partial(adapter.adapt, spans) for spans in traces], rounds=ROUNDS)
            each = [time / len(spans) for time, spans in zip(seconds, traces, strict=True)]
            results = str(len(adapter.adapt(traces[-1])))
            rates = [f"{1 / time:,.0f}" for time in each]
            rows.append(
                [name, shape.__name__, *rates, *[time * 1e6 for time in each], each[1] / each[0], results]
            )
    few, many = (f"{size:,}" for size in SIZES)
    table(
        [
            "adapter",
            "trace",
            f"spans/s of {few}",
            f"of {many}",
            f"µs a span of {few}",
            f"of {many}",
            "ratio",
            "results",
        ],
        rows,
    )
