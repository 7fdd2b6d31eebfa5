"""``TraceMessagesAdapter``: the LLM calls of a trace as chat messages, for a fine-tuning file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_adapter_triplet import CallAdapter, RecordedCall, TraceCalls

from lightning_core.errors import ConfigurationError
from lightning_core.types import SpanLike

from .conversation import continuations
from .example import ChatExample, UnfitCallError, make_example
from .explanation import CallMessages, MessagesExplanation

__all__ = ["TraceMessagesAdapter"]


class TraceMessagesAdapter(CallAdapter[list[ChatExample]]):
    """Makes an example of every LLM call of an attempt, in order of sequence ids: a line of a fine-tuning file.

    An example is JSON-able, and valid for OpenAI's fine-tuning::

        {"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant", ...}], "tools": [...]}

    The last message is the model's answer; ``tools`` is there if the model was offered any. Calls that would make no
    valid example are left out with a warning, and :meth:`explain` says why.

    Args:
        agent_match: Regular expression; only the calls of agents whose name it matches somewhere are taken. A call
            belongs to the nearest agent that it lies in.
        llm_call_match: Regular expression; the spans whose name it matches somewhere are the LLM calls. By default
            the spans' attributes tell.
        exclude_llm_call_in_reward: Leave out the calls that a reward function made, such as those to a judge.
        repair_hierarchy: Find a parent, by enclosure in time, for spans that have none in the trace.
        per: ``"call"``: an example for each call. ``"conversation"``: only for calls that no later one continues,
            whose examples hold the earlier ones.
        keep_reasoning: Keep what the model thought, as ``reasoning_content`` of a message. Trainers of open models
            know this field, and OpenAI's fine-tuning does not take it.

    Raises:
        ConfigurationError: If a setting is wrong. This is a ``ValueError``.
    """

    def __init__(
        self,
        agent_match: str | None = None,
        llm_call_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
        per: Literal["call", "conversation"] = "call",
        keep_reasoning: bool = False,
    ) -> None:
        if per not in ("call", "conversation"):
            raise ConfigurationError(f"per: {per!r} is neither 'call' nor 'conversation'")
        super().__init__(agent_match, llm_call_match, exclude_llm_call_in_reward, repair_hierarchy)
        self.per = per
        self.keep_reasoning = keep_reasoning

    def adapt(self, source: Sequence[SpanLike], /) -> list[ChatExample]:
        """Make the examples of one attempt. Logs a warning if there are none, or if a call would make no valid one."""
        analysis = self._analyse(source)
        empty = analysis.empty_because()
        if source and empty is not None:
            self.warn("%d spans gave no example: %s", len(source), empty)
        elif analysis.unfit:
            self.warn(
                "%d of %d LLM calls gave no example: %s",
                len(analysis.unfit),
                len(analysis.trace.calls),
                _most_common(analysis.unfit.values()),
            )
        return [made.example for made in analysis.examples]

    def explain(self, source: Sequence[SpanLike], /) -> MessagesExplanation:
        """Say which call gave which example, and why the others, or the trace, gave none."""
        return self._analyse(source).explanation()

    def _analyse(self, source: Sequence[SpanLike]) -> _Analysis:
        trace = self.finder.find(source)
        analysis = _Analysis(trace)
        for call in trace.calls:
            try:
                example, notes = make_example(call.call, keep_reasoning=self.keep_reasoning)
            except UnfitCallError as error:
                analysis.unfit[call] = str(error)
            else:
                analysis.examples.append(_Made(call, example, notes))
        if self.per == "conversation":
            made = analysis.examples
            continued = continuations([one.example for one in made])
            analysis.parts = {made[part].call: made[whole].call for part, whole in continued.items()}
            analysis.examples = [one for place, one in enumerate(made) if place not in continued]
        return analysis


@dataclass
class _Made:
    """A call and its example."""

    call: RecordedCall
    example: ChatExample
    notes: list[str]


@dataclass
class _Analysis:
    """All that is known of a trace."""

    trace: TraceCalls
    examples: list[_Made] = field(default_factory=list[_Made])
    unfit: dict[RecordedCall, str] = field(default_factory=dict[RecordedCall, str])
    parts: dict[RecordedCall, RecordedCall] = field(default_factory=dict[RecordedCall, RecordedCall])

    def empty_because(self) -> str | None:
        if self.examples:
            return None
        if self.trace.empty_because is not None:
            return self.trace.empty_because
        reasons = [*self.trace.excluded.values(), *self.unfit.values()]
        return f"{len(reasons)} LLM calls, all left out: {_most_common(reasons)}"

    def explanation(self) -> MessagesExplanation:
        trace = self.trace
        told = [
            (node.index, CallMessages(node.label, node.span_id, trace.agents[node], excluded_because=reason))
            for node, reason in trace.excluded.items()
        ]
        told += [
            (call.node.index, self._told(call, excluded_because=reason))
            for call, reason in self.unfit.items()
        ]
        told += [
            (part.node.index, self._told(part, part_of=whole.node.label))
            for part, whole in self.parts.items()
        ]
        for made in self.examples:
            example = made.example
            about = self._told(
                made.call,
                messages=len(example["messages"]),
                tools=len(example.get("tools", ())),
                notes=tuple(made.notes),
            )
            told.append((made.call.node.index, about))
        told.sort(key=lambda entry: entry[0])
        return MessagesExplanation(
            trace.spans,
            len(self.examples),
            self.empty_because(),
            tuple(trace.tree.notes),
            tuple(about for _, about in told),
        )

    def _told(self, call: RecordedCall, **more: Any) -> CallMessages:
        node = call.node
        same = tuple(other.label for other in call.nodes if other is not node)
        return CallMessages(node.label, node.span_id, self.trace.agents[node], same_call=same, **more)


def _most_common(reasons: Iterable[str]) -> str:
    return "; ".join(
        f"{reason} ({count} times)" if count > 1 else reason
        for reason, count in Counter(reasons).most_common(3)
    )
