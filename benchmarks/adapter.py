"""The triplet adapter: milliseconds for 10, 100 and 1,000 spans, flat and nested."""

from __future__ import annotations

from benchmarks.measure import in_turns, table
from lightning_core.adapter import TraceTripletAdapter
from lightning_core.types import Span, SpanAttributeNames, SpanNames

SIZES = [10, 100, 1_000]


def trace(size: int, *, nested: bool) -> list[Span]:
    """A root with ``size`` model calls, side by side or each inside the one before, and a reward."""
    ids = {"rollout_id": "ro", "attempt_id": "at", "trace_id": "ab" * 16}
    root = f"{1:016x}"
    spans = []
    for index in range(size):
        parent = f"{index + 1:016x}" if nested else root
        spans.append(
            Span.from_attributes(
                name="chat m" if not nested or index % 2 else "step",
                span_id=f"{index + 2:016x}",
                parent_id=parent,
                sequence_id=index + 1,
                attributes={
                    "gen_ai.request.model": "m",
                    "gen_ai.prompt.0.role": "user",
                    "gen_ai.prompt.0.content": f"question {index}",
                    "gen_ai.completion.0.role": "assistant",
                    "gen_ai.completion.0.content": f"answer {index}",
                },
                **ids,
            )
        )
    spans.append(
        Span.from_attributes(
            name=SpanNames.REWARD.value,
            span_id=f"{size + 2:016x}",
            parent_id=root,
            sequence_id=size + 1,
            attributes={SpanAttributeNames.REWARD.value: 1.0},
            **ids,
        )
    )
    spans.append(
        Span.from_attributes(name="rollout", span_id=root, sequence_id=size + 2, attributes={}, **ids)
    )
    return spans


def main() -> None:
    """Run the benchmark."""
    adapter = TraceTripletAdapter()
    rows = []
    for nested in (False, True):
        traces = [trace(size, nested=nested) for size in SIZES]
        medians = in_turns(*[lambda spans=spans: adapter.adapt(spans) for spans in traces], rounds=9)
        for size, spans, seconds in zip(SIZES, traces, medians, strict=True):
            rows.append(
                [
                    "nested" if nested else "flat",
                    f"{size:,}",
                    seconds * 1e3,
                    seconds / size * 1e6,
                    str(len(adapter.adapt(spans))),
                ]
            )
    table(["trace", "spans", "ms", "µs per span", "triplets"], rows)
