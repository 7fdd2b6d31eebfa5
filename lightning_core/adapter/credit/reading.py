"""Reads the LLM calls and rewards of an attempt from its spans, as far as that takes no adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

from lightning_core.emitter import get_reward_value, is_reward_span
from lightning_core.types import LLMCall, Span, SpanLike, is_llm_call

from .base import CreditCall, CreditReward, CreditTrace

__all__ = ["AttemptReading", "read_attempt"]


@dataclass(frozen=True)
class AttemptReading:
    """What the spans of an attempt tell of calls and rewards.

    Attributes:
        spans: The spans in order; their numbers are the places of the trace.
        trace: The calls and the rewards, for credit assignment.
        calls: What each call of the trace was, told by the span of it that tells most.
        places: The place of that span, for each call.
        in_rewards: Calls that a reward function made, such as those to a judge: each span's place, and that of the
            reward. They take no reward.
    """

    spans: Sequence[SpanLike]
    trace: CreditTrace
    calls: Sequence[LLMCall]
    places: Sequence[int]
    in_rewards: Mapping[int, int]


def read_attempt(spans: Sequence[SpanLike]) -> AttemptReading:
    """Find the LLM calls and rewards of one attempt.

    The span of a call inside of that of another call is the same call, recorded by a framework and by the SDK below it,
    unless their response ids differ, or another one inside is that call already, as with a retry. Adapters look closer.

    Args:
        spans: The spans of one attempt: stored ones in any order, those of OpenTelemetry in the order in which they
            ended.
    """
    ordered = _in_order(spans)
    identities = [_identity(span) for span in ordered]
    place_of = {own: place for place, (own, _) in enumerate(identities) if own}
    parents = [place_of.get(parent) if parent else None for _, parent in identities]
    is_reward = [is_reward_span(span) for span in ordered]
    found = {
        place: LLMCall.from_span(span)
        for place, span in enumerate(ordered)
        if not is_reward[place] and is_llm_call(cast("Mapping[str, Any]", span.attributes or {}))
    }
    reward_above = _nearest_above(parents, is_reward)
    in_rewards = {place: reward for place in found if (reward := reward_above[place]) is not None}
    own = {place: call for place, call in found.items() if place not in in_rewards}
    groups = _merge_nested(own, _nearest_above(parents, [place in own for place in range(len(ordered))]))
    told = [max(group, key=lambda place: _evidence(own[place])) for group in groups]
    return AttemptReading(
        ordered,
        CreditTrace(
            [CreditCall(group[0], tuple(group)) for group in groups],
            [
                CreditReward(place, get_reward_value(span))
                for place, span in enumerate(ordered)
                if is_reward[place]
            ],
            parents,
            [f"#{place} {span.name} [{identities[place][0]}]" for place, span in enumerate(ordered)],
        ),
        [own[place] for place in told],
        told,
        in_rewards,
    )


def _in_order(spans: Sequence[SpanLike]) -> Sequence[SpanLike]:
    stored = [(span.sequence_id, span) for span in spans if isinstance(span, Span)]
    if len(stored) < len(spans):
        return spans
    return [span for _, span in sorted(stored, key=itemgetter(0))]


def _identity(span: SpanLike) -> tuple[str, str | None]:
    """Return the ids of a span and its parent."""
    if isinstance(span, Span):
        return span.span_id, span.parent_id
    context = span.get_span_context()
    own = "" if context is None else f"{context.span_id:016x}"
    return own, None if span.parent is None else f"{span.parent.span_id:016x}"


def _nearest_above(parents: Sequence[int | None], marked: Sequence[bool]) -> list[int | None]:
    """Return the nearest ancestor of each span that is marked."""
    above: list[int | None] = [None] * len(parents)
    seen_from = [-1] * len(parents)
    for start in range(len(parents)):
        path: list[int] = []
        at: int | None = start
        while at is not None and seen_from[at] < 0:
            seen_from[at] = start
            path.append(at)
            at = parents[at]
        nearest: int | None = None
        if at is not None and seen_from[at] != start:  # else it is the top, or parents go round in a circle
            nearest = at if marked[at] else above[at]
        for step in reversed(path):
            above[step] = nearest
            if marked[step]:
                nearest = step
    return above


def _merge_nested(calls: Mapping[int, LLMCall], above: Sequence[int | None]) -> list[list[int]]:
    """Return the places of the spans of each call, calls and places in order."""
    inner_of: dict[int, int] = {}
    for place, call in calls.items():
        outer = above[place]
        if outer is None or outer in inner_of:
            continue
        ids = {call.response_id, calls[outer].response_id} - {None}
        if len(ids) < 2:
            inner_of[outer] = place
    inner = set(inner_of.values())
    groups: list[list[int]] = []
    for place in calls:
        if place in inner:
            continue
        group = [place]
        while group[-1] in inner_of:
            group.append(inner_of[group[-1]])
        groups.append(sorted(group))
    return sorted(groups)


def _evidence(call: LLMCall) -> tuple[bool, ...]:
    response = call.response
    return (
        response is not None and response.token_ids.ids is not None,
        call.prompt_token_ids.ids is not None,
        response is not None,
        call.response_id is not None,
    )
