"""What ``TraceMessagesAdapter.explain()`` returns: the fate of every LLM call of a trace."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_core.adapter.base import Explanation

__all__ = ["CallMessages", "MessagesExplanation"]


@dataclass(frozen=True)
class CallMessages:
    """What became of one LLM call.

    Attributes:
        span: The span that was read: ``#place name [span id]``.
        span_id: That span's id, in 16 hexadecimal digits.
        agent: Name of the agent that made the call, if known.
        excluded_because: Why the call gave no example; ``None`` if it gave one or is part of one.
        part_of: The call whose example holds this one, if it gave none of its own: ``#place name [span id]``.
        messages: Number of messages, the answer included; 0 if the call gave no example.
        tools: Number of tools that the model was offered.
        same_call: Further spans of the same call.
        notes: What the span did not tell and was filled in, or what was left out.
    """

    span: str
    span_id: str
    agent: str | None = None
    excluded_because: str | None = None
    part_of: str | None = None
    messages: int = 0
    tools: int = 0
    same_call: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"call {self.span}"
        if self.agent is not None:
            text += f" of agent {self.agent!r}"
        if self.excluded_because is not None:
            return f"{text}: no example, {self.excluded_because}"
        if self.part_of is not None:
            return f"{text}: part of the conversation of {self.part_of}"
        text += f": an example of {self.messages} messages"
        if self.tools:
            text += f", with {self.tools} tool{'' if self.tools == 1 else 's'}"
        if self.same_call:
            text += f"; the same call as {', '.join(self.same_call)}"
        return "; ".join([text, *self.notes])


@dataclass(frozen=True)
class MessagesExplanation(Explanation):
    """How a trace became examples. ``str()`` gives it as text.

    Attributes:
        calls: Every span that is an LLM call by itself, in order.
    """

    calls: tuple[CallMessages, ...] = ()

    def lines(self) -> list[str]:
        """Return the text, line by line."""
        head, *notes = super().lines()
        return [head, *map(str, self.calls), *(f"note: {note}" for note in notes)]
