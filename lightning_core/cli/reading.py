"""What ``runs explain`` reads of an attempt: its calls and rewards, which went where, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lightning_core.adapter import advice
from lightning_core.adapter.base import TraceAdapter
from lightning_core.adapter.credit.base import CreditPolicy
from lightning_core.adapter.credit.reading import read_attempt
from lightning_core.types import Attempt, LLMCall, RolloutV2, Span

__all__ = ["CallLine", "Problem", "RewardLine", "RolloutReport", "explain_rollout"]


@dataclass(frozen=True)
class Problem:
    """Something that keeps an algorithm from learning from a rollout.

    Attributes:
        kind: What it is, the same for all rollouts that have it.
        fix: What to do about it.
        text: What it is in this rollout.
    """

    kind: str
    fix: str
    text: str


@dataclass(frozen=True)
class CallLine:
    """One LLM call.

    Attributes:
        place: The number of its span in the order of the attempt, from 0.
        span: Its span: name and id.
        span_id: That id.
        model: The model's name, if recorded.
        input_tokens: Tokens of the prompt, as the engine counted them.
        output_tokens: Tokens of the answer, as the engine counted them.
        prompt_ids: Where the ids of the prompt's tokens are; ``None`` if nowhere.
        response_ids: Where the ids of the sampled tokens are; ``None`` if nowhere.
        missing: Why ids are missing, one sentence each.
        reward: Its reward, if it has one.
        reason: By which rule it has this reward, or why it has none.
        left_out: Why the call does not count at all.
        fix: How to get ids that are missing.
    """

    place: int
    span: str
    span_id: str
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_ids: str | None = None
    response_ids: str | None = None
    missing: tuple[str, ...] = ()
    reward: float | None = None
    reason: str | None = None
    left_out: str | None = None
    fix: str | None = None

    @property
    def has_ids(self) -> bool:
        """Whether the ids of both prompt and answer are known."""
        return self.prompt_ids is not None and self.response_ids is not None


@dataclass(frozen=True)
class RewardLine:
    """One reward.

    Attributes:
        place: The number of its span in the order of the attempt, from 0.
        span: Its span: name and id.
        value: The reward; ``None`` if the span holds no finite number.
        landed: Whether a call has it.
        reason: By which rule it landed where it did, or why it landed nowhere.
    """

    place: int
    span: str
    value: float | None
    landed: bool
    reason: str


@dataclass(frozen=True)
class RolloutReport:
    """What became of one rollout, and whether something can be learned from it.

    Attributes:
        rollout: The rollout.
        attempts: How many attempts it had.
        spans: How many spans the latest one has.
        calls: The calls of that one, in order.
        rewards: Its rewards, in order.
        problems: What keeps an algorithm from learning from it.
        error: Why it did not succeed.
        without_calls: Why the adapter found no call, if it did not.
    """

    rollout: RolloutV2
    attempts: int
    spans: int
    calls: Sequence[CallLine] = ()
    rewards: Sequence[RewardLine] = ()
    problems: Sequence[Problem] = ()
    error: str | None = None
    without_calls: str | None = None

    @property
    def counted(self) -> list[CallLine]:
        """The calls that are not left out."""
        return [call for call in self.calls if call.left_out is None]

    @property
    def usable(self) -> int:
        """How many calls have token ids and a reward; none of a rollout that did not succeed."""
        if self.rollout.status != "succeeded":
            return 0
        return sum(call.has_ids and call.reward is not None for call in self.counted)

    @property
    def rewarded(self) -> bool:
        """Whether it succeeded with a reward."""
        return self.rollout.status == "succeeded" and any(reward.value is not None for reward in self.rewards)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        rollout = self.rollout
        return {
            "type": "rollout",
            "rollout_id": rollout.rollout_id,
            "status": rollout.status,
            "mode": rollout.mode,
            "attempts": self.attempts,
            "spans": self.spans,
            "error": self.error,
            "calls": [asdict(call) for call in self.calls],
            "rewards": [asdict(reward) for reward in self.rewards],
            "problems": [asdict(problem) for problem in self.problems],
            "usable_calls": self.usable,
        }


class _ToldCall(Protocol):
    """What the explanation of an adapter says of a call."""

    span_id: str
    reward: float | None
    rule: str | None
    excluded_because: str | None
    same_call: Sequence[str]


class _ToldReward(Protocol):
    """What the explanation of an adapter says of a reward."""

    span_id: str
    value: float | None
    call_span_id: str | None
    reason: str


def explain_rollout(
    rollout: RolloutV2,
    attempts: Sequence[Attempt],
    spans: Sequence[Span],
    credit: CreditPolicy,
    adapter: TraceAdapter[Any] | None,
) -> RolloutReport:
    """Explain what became of a rollout's latest attempt.

    Args:
        rollout: The rollout.
        attempts: Its attempts, in order.
        spans: The spans of the latest one.
        credit: How rewards are assigned, where no adapter does.
        adapter: An adapter that explains each call and each reward, if there is one.
    """
    ordered = sorted(spans, key=lambda span: span.sequence_id)
    calls, rewards, without_calls = _by_adapter(ordered, adapter) or _by_credit(ordered, credit)
    latest = attempts[-1] if attempts else None
    error = None
    if latest is not None and rollout.is_final and rollout.status != "succeeded":
        said = latest.metadata.get("error") or latest.metadata.get("detail")
        error = ": ".join(str(part) for part in (latest.reason, said) if part) or None
    report = RolloutReport(
        rollout,
        len(attempts),
        len(ordered),
        sorted(calls, key=lambda call: call.place),
        sorted(rewards, key=lambda reward: reward.place),
        error=error,
        without_calls=without_calls,
    )
    return replace(report, problems=tuple(_problems(report)))


def _line(place: int, span: Span, call: LLMCall, **more: Any) -> CallLine:
    response = call.response
    prompt_ids = call.prompt_token_ids
    response_ids = response.token_ids if response is not None else None
    missing: list[str] = []
    fix: str | None = None
    if response_ids is not None:
        missing = [ids.missing or "ids are missing" for ids in (prompt_ids, response_ids) if ids.ids is None]
        fix = advice.token_ids_advice(span.attributes) if missing else None
    elif span.status.status_code == "ERROR":
        missing, fix = (
            [f"the call failed: {span.status.description or 'no reason recorded'}"],
            advice.FAILED_CALL,
        )
    else:
        missing, fix = ["the span holds no answer"], advice.NO_CONTENT
    return CallLine(
        place,
        f"{span.name} [{span.span_id}]",
        span.span_id,
        call.model,
        call.input_tokens,
        call.output_tokens,
        prompt_ids.source if prompt_ids.ids is not None else None,
        response_ids.source if response_ids is not None and response_ids.ids is not None else None,
        tuple(missing),
        fix=fix,
        **more,
    )


def _by_credit(
    spans: Sequence[Span], credit: CreditPolicy
) -> tuple[list[CallLine], list[RewardLine], str | None]:
    """Explain with what the core knows by itself."""
    reading = read_attempt(spans)
    trace = reading.trace
    outcome = credit.assign(trace)
    calls = [
        _line(place, spans[place], call, reward=given.reward, reason=given.reason)
        for place, call, given in zip(reading.places, reading.calls, outcome.calls, strict=True)
    ]
    calls += [
        _line(
            place,
            spans[place],
            LLMCall.from_span(spans[place]),
            left_out=f"it was made by the reward function {trace.name(reward)}",
        )
        for place, reward in reading.in_rewards.items()
    ]
    sources = {given.source for given in outcome.calls if given.reward is not None}
    rewards = [
        RewardLine(
            reward.place,
            f"{spans[reward.place].name} [{spans[reward.place].span_id}]",
            reward.value,
            gone.call is not None or number in sources,
            gone.reason,
        )
        for number, (reward, gone) in enumerate(zip(trace.rewards, outcome.rewards, strict=True))
    ]
    return calls, rewards, None


def _by_adapter(
    spans: Sequence[Span], adapter: TraceAdapter[Any] | None
) -> tuple[list[CallLine], list[RewardLine], str | None] | None:
    """Explain with an adapter, whose reading of the calls is the one that counts."""
    if adapter is None:
        return None
    explanation = adapter.explain(spans)
    told_calls: Sequence[_ToldCall] | None = getattr(explanation, "calls", None)
    told_rewards: Sequence[_ToldReward] | None = getattr(explanation, "rewards", None)
    if told_calls is None or told_rewards is None:
        return None
    places = {span.span_id: place for place, span in enumerate(spans)}
    calls: list[CallLine] = []
    for told in told_calls:
        place = places[told.span_id]
        same = f"the same call as {', '.join(told.same_call)}" if told.same_call else None
        reason = "; ".join(text for text in (told.rule or "no reward landed on it", same) if text)
        calls.append(
            _line(
                place,
                spans[place],
                LLMCall.from_span(spans[place]),
                reward=told.reward,
                reason=reason,
                left_out=told.excluded_because,
            )
        )
    rewards = [
        RewardLine(
            places[told.span_id],
            f"{spans[places[told.span_id]].name} [{told.span_id}]",
            told.value,
            told.call_span_id is not None,
            told.reason,
        )
        for told in told_rewards
    ]
    return calls, rewards, explanation.empty_because


def _problems(report: RolloutReport) -> Iterator[Problem]:
    status = report.rollout.status
    if not report.rollout.is_final:
        yield _problem(f"the rollout is not over: it is {status}", "wait for it, or resume the run")
    elif status != "succeeded":
        yield _problem(
            f"the rollout {'was cancelled' if status == 'cancelled' else 'failed'}: there is nothing to learn from it",
            "put right what stopped it; what fails now and then can be tried again: RolloutConfig(max_attempts=2)",
        )
    elif not report.spans:
        yield _problem("no span was recorded", advice.NO_SPANS)
    else:
        yield from _problems_of_calls(report)
        yield from _problems_of_rewards(report)


def _problem(kind: str, fix: str, text: str | None = None) -> Problem:
    return Problem(kind, fix, text or kind)


def _problems_of_calls(report: RolloutReport) -> Iterator[Problem]:
    counted = report.counted
    if not report.calls:
        yield _problem("no LLM call was found", advice.NO_CALLS, report.without_calls)
    elif not counted:
        first = report.calls[0]
        judging = "reward function" in (first.left_out or "")
        yield _problem(
            "all LLM calls are left out",
            (None if judging else first.fix)
            or "let the agent itself call the model, and look at the adapter's settings",
            f"all {len(report.calls)} LLM calls are left out; the first, since {first.left_out}",
        )
    lacking = Counter((call.missing, call.fix) for call in counted if call.missing)
    for (missing, fix), count in lacking.items():
        what = ", ".join(missing)
        yield _problem(what, fix or "", f"{count} of {len(counted)} calls: {what}")


def _problems_of_rewards(report: RolloutReport) -> Iterator[Problem]:
    counted = report.counted
    values = [reward for reward in report.rewards if reward.value is not None]
    if len(values) < len(report.rewards):
        count = len(report.rewards) - len(values)
        yield _problem(
            "rewards hold no finite number",
            advice.NO_REWARD,
            f"{count} of {len(report.rewards)} rewards hold no finite number",
        )
    elif not values:
        yield _problem("there is no reward", advice.NO_REWARD)
    if values and counted and not any(call.reward is not None for call in counted):
        yield _problem(
            "no reward landed on a call",
            advice.NO_MATCH,
            f"none of {len(values)} rewards landed on one of {len(counted)} calls; the last: {values[-1].reason}",
        )
