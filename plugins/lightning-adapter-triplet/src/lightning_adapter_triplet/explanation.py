"""What ``TraceTripletAdapter.explain()`` returns: the fate of every call and every reward of a trace."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_core.adapter.base import Explanation

__all__ = ["CallExplanation", "RewardExplanation", "TripletExplanation"]


@dataclass(frozen=True)
class CallExplanation:
    """What became of one LLM call.

    Attributes:
        span: The span that was read: ``#place name [span id]``.
        span_id: That span's id, in 16 hexadecimal digits.
        agent: Name of the agent that made the call, if known.
        excluded_because: Why the call gave no triplet; ``None`` if it gave one.
        reward: The reward that landed on it.
        reward_span_id: Where that reward came from.
        rule: By which rule it landed here.
        same_call: Further spans of the same call.
        token_ids: Where the token ids come from, or why they are missing.
    """

    span: str
    span_id: str
    agent: str | None = None
    excluded_because: str | None = None
    reward: float | None = None
    reward_span_id: str | None = None
    rule: str | None = None
    same_call: tuple[str, ...] = ()
    token_ids: str = ""

    def __str__(self) -> str:
        text = f"call {self.span}"
        if self.agent is not None:
            text += f" of agent {self.agent!r}"
        if self.excluded_because is not None:
            return f"{text}: no triplet, {self.excluded_because}"
        if self.reward is None:
            text += ": a triplet without a reward"
        else:
            source = f" of [{self.reward_span_id}]" if self.reward_span_id is not None else ""
            text += f": a triplet with reward {self.reward:g}{source} ({self.rule})"
        if self.same_call:
            text += f"; the same call as {', '.join(self.same_call)}"
        return f"{text}; {self.token_ids}"


@dataclass(frozen=True)
class RewardExplanation:
    """Where one reward went.

    Attributes:
        span: The reward's span: ``#place name [span id]``.
        span_id: That span's id, in 16 hexadecimal digits.
        value: The reward; ``None`` if the span holds no finite number.
        call_span_id: The call that it landed on, if any.
        reason: By which rule it landed there, or why it landed nowhere.
    """

    span: str
    span_id: str
    value: float | None
    call_span_id: str | None
    reason: str

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value:g}"
        place = f"to call [{self.call_span_id}]" if self.call_span_id is not None else "to no call"
        return f"reward{value} {self.span}: {place}, {self.reason}"


@dataclass(frozen=True)
class TripletExplanation(Explanation):
    """How a trace became triplets. ``str()`` gives it as text.

    Attributes:
        calls: Every span that is an LLM call by itself, in order.
        rewards: Every reward span, in order.
        warning: What is most likely not as intended, if anything.
    """

    calls: tuple[CallExplanation, ...] = ()
    rewards: tuple[RewardExplanation, ...] = ()
    warning: str | None = None

    def lines(self) -> list[str]:
        """Return the text, line by line."""
        head, *notes = super().lines()
        lines = [head]
        if self.warning is not None:
            lines.append(f"warning: {self.warning}")
        lines += [str(call) for call in self.calls]
        lines += [str(reward) for reward in self.rewards]
        return lines + [f"note: {note}" for note in notes]
