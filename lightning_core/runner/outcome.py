"""What an agent returned, turned into spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from lightning_core.emitter import get_reward_value, is_reward_span, parse_reward
from lightning_core.errors import InvalidOutcomeError
from lightning_core.types import AttemptedRollout, Span, SpanAttributeNames, SpanLike, SpanNames

__all__ = ["outcome_spans"]


def outcome_spans(
    result: Any, *, emitted: Sequence[SpanLike], rollout: AttemptedRollout, parent: SpanContext | None
) -> list[Span]:
    """Convert an agent's result into the spans to store after those that were traced.

    Args:
        result: ``None``, a reward, or a list of spans.
        emitted: The spans of the trace so far, in order.
        rollout: The rollout and attempt that the result is of.
        parent: The span under which a reward belongs.

    Returns:
        No span for ``None``, nor for a reward that the agent has emitted last; the returned spans without those that
        were traced already, since they are the same evidence.

    Raises:
        InvalidOutcomeError: If the result is none of these, or the reward is not finite.
    """
    if result is None:
        return []
    if isinstance(result, list | tuple):
        return _returned_spans(list(result), emitted, rollout)  # pyright: ignore[reportUnknownArgumentType] - checked there
    try:
        value = parse_reward(result)
    except (TypeError, ValueError) as error:
        raise InvalidOutcomeError(
            f"the agent returned {_shown(result)}: {error}. Return the reward as a finite number, None if the agent "
            "emits its rewards, or a list of spans"
        ) from error
    last = next((span for span in reversed(emitted) if is_reward_span(span)), None)
    if last is not None and get_reward_value(last) == value:
        return []
    valid = parent is not None and parent.is_valid
    return [
        Span.from_attributes(
            name=SpanNames.REWARD.value,
            attributes={SpanAttributeNames.REWARD.value: value},
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            trace_id=f"{parent.trace_id:032x}" if parent is not None and valid else None,
            parent_id=f"{parent.span_id:016x}" if parent is not None and valid else None,
        )
    ]


def _returned_spans(result: list[Any], emitted: Sequence[SpanLike], rollout: AttemptedRollout) -> list[Span]:
    attempt_id = rollout.attempt.attempt_id
    seen = {_span_id(span) for span in emitted}
    spans: list[Span] = []
    for index, item in enumerate(result):
        if isinstance(item, Span):
            # The store draws the sequence ids, so that they follow those of the trace.
            span = item.detached(rollout_id=rollout.rollout_id, attempt_id=attempt_id, sequence_id=0)
        elif isinstance(item, ReadableSpan):
            span = Span.from_opentelemetry(item, rollout.rollout_id, attempt_id)
        else:
            raise InvalidOutcomeError(
                f"the agent returned a list whose item {index} is {_shown(item)}; a list must hold spans only"
            )
        if span.span_id not in seen:
            spans.append(span)
    return spans


def _span_id(span: SpanLike) -> str:
    if isinstance(span, Span):
        return span.span_id
    context = span.get_span_context()
    return f"{context.span_id:016x}" if context is not None else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"a {type(value).__name__} ({text if len(text) <= 80 else text[:77] + '...'})"
