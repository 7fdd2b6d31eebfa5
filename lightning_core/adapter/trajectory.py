"""Trajectories: the turns of an attempt, merged into sequences of tokens to train on.

A turn goes on from the longest history that its prompt begins with, token by token. Where a history was edited,
compacted or forked, another trajectory branches off. Text is never compared: the same text may be other tokens.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lightning_core.errors import ConfigurationError
from lightning_core.types import SpanLike, Triplet

from .advice import NO_TOKEN_IDS
from .base import Explanation, TraceAdapter

__all__ = [
    "Trajectory",
    "TrajectoryAdapter",
    "TrajectoryExplanation",
    "TrajectoryTurn",
    "Turn",
    "merge_turns",
    "turns_of",
]


@dataclass(frozen=True)
class Turn:
    """One call of a model: what it was given, and what it sampled.

    Attributes:
        prompt: Ids of the prompt's tokens, from the engine; ``None`` if they are not known.
        response: Ids of the sampled tokens, from the engine; ``None`` if they are not known.
        logprobs: Log-probability of each sampled token; ``None`` if they are not known.
        reward: The reward of the turn, if it has one.
        model: Who sampled. Turns of different models are never merged.
        name: How explanations name the turn.
        missing: Why ids are not known.
        metadata: Whatever else is worth keeping; it is handed on as it is.
    """

    prompt: Sequence[int] | None
    response: Sequence[int] | None
    logprobs: Sequence[float] | None = None
    reward: float | None = None
    model: str | None = None
    name: str = ""
    missing: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class TrajectoryTurn:
    """A turn in its place in a trajectory.

    Attributes:
        start: Where its sampled tokens begin.
        end: Where they end: the place after the last one.
        reward: The reward of the turn, if it has one.
        metadata: What was known of it.
    """

    start: int
    end: int
    reward: float | None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Trajectory:
    """A sequence of tokens to train on. All lists are as long as the sequence.

    Every sampled token of an attempt has a 1 in the loss mask of exactly one trajectory. So a trajectory that branches
    off has a 0 for what the one that it branches from has sampled.

    Attributes:
        token_ids: Prompts and responses of all turns, each token once.
        loss_mask: 1 where one of the turns sampled the token, else 0.
        logprobs: Log-probabilities of these, as the engine gave them; ``None`` where it did not, and elsewhere.
        turns: The turns, in order.
        branch_of: Number of the trajectory of which the first prompt of this one repeats most tokens, from the begin;
            ``None`` if it repeats none of any.
        shared: How many tokens these are.
        model: Who sampled.
    """

    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float | None]
    turns: list[TrajectoryTurn]
    branch_of: int | None = None
    shared: int = 0
    model: str | None = None

    @property
    def rewards(self) -> list[float | None]:
        """The reward of each turn."""
        return [turn.reward for turn in self.turns]


def merge_turns(turns: Sequence[Turn]) -> list[Trajectory]:
    """Merge turns into trajectories.

    A turn is added to the trajectory whose whole sequence is the longest that its prompt begins with; of several equal
    ones, to the one that was begun first. If that history has gone on otherwise already, or there is none, the turn
    begins a trajectory of its own. Takes time in proportion to the number of tokens, and of turns along a history.

    Args:
        turns: The turns of one attempt, in order. Those without token ids are passed over.
    """
    merged: list[Trajectory] = []
    histories: dict[str | None, _Node] = {}
    for turn in turns:
        if not _has_ids(turn):
            continue
        prompt, response = list(turn.prompt or ()), list(turn.response or ())
        found = histories.setdefault(turn.model, _Node([])).add(prompt, response)
        if found.history is not None and found.history.open:
            number = found.history.open.pop(0)
        else:
            number = len(merged)
            merged.append(Trajectory([], [], [], [], found.neighbour, found.shared, turn.model))
        _append(merged[number], turn, prompt, response)
        insort(found.end.open, number)
        found.mark(number)
    return merged


def _has_ids(turn: Turn) -> bool:
    return turn.prompt is not None and len(turn.prompt) > 0 and turn.response is not None


def _append(trajectory: Trajectory, turn: Turn, prompt: list[int], response: list[int]) -> None:
    new = prompt[len(trajectory.token_ids) :]
    start = len(prompt)
    trajectory.token_ids.extend(new)
    trajectory.token_ids.extend(response)
    trajectory.loss_mask.extend([0] * len(new) + [1] * len(response))
    known = turn.logprobs is not None and len(turn.logprobs) == len(response)
    trajectory.logprobs.extend([None] * len(new))
    trajectory.logprobs.extend(list(turn.logprobs or ()) if known else [None] * len(response))
    trajectory.turns.append(TrajectoryTurn(start, start + len(response), turn.reward, turn.metadata))


class _Node:
    """A node of a trie of sequences, whose edges hold as many tokens as are the same for all below.

    Attributes:
        tokens: The tokens on the edge to this node.
        children: The nodes below, by the first token of their edge.
        open: The trajectories whose sequence ends here, and that have not gone on, in order.
        ended: Whether a sequence ends here, or did before it went on.
        first: The first trajectory that came through here.
    """

    __slots__ = ("children", "ended", "first", "open", "tokens")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.children: dict[int, _Node] = {}
        self.open: list[int] = []
        self.ended = False
        self.first: int | None = None

    def add(self, prompt: list[int], response: list[int]) -> _Found:
        """Add a sequence, and say what of it was known before."""
        sequence = [*prompt, *response]
        node, depth = self, 0
        path: list[_Node] = []
        history: _Node | None = None
        shared = 0
        neighbour: int | None = None
        while depth < len(sequence):
            child = node.children.get(sequence[depth])
            if child is None:
                child = _Node(sequence[depth:])
                node.children[sequence[depth]] = child
                node, depth = child, len(sequence)
                path.append(child)
                break
            length = _common(child.tokens, sequence, depth)
            if depth < len(prompt):
                shared, neighbour = min(depth + length, len(prompt)), child.first
            if length < len(child.tokens):
                child = node.split(child, length)
            node, depth = child, depth + length
            path.append(child)
            if child.ended and depth <= len(prompt):
                history = child
        node.ended = True
        return _Found(history, node, path, shared, neighbour)

    def split(self, child: _Node, length: int) -> _Node:
        """Put a node in the middle of the edge to ``child``, after ``length`` tokens."""
        middle = _Node(child.tokens[:length])
        middle.first = child.first
        middle.children[child.tokens[length]] = child
        child.tokens = child.tokens[length:]
        self.children[middle.tokens[0]] = middle
        return middle


@dataclass(frozen=True)
class _Found:
    """What was known of a sequence that was added.

    Attributes:
        history: Where the longest known sequence ends that the prompt begins with.
        end: Where the sequence itself ends.
        path: All nodes down to there.
        shared: How many tokens of the prompt another sequence began with, at most.
        neighbour: The first trajectory that did.
    """

    history: _Node | None
    end: _Node
    path: list[_Node]
    shared: int
    neighbour: int | None

    def mark(self, number: int) -> None:
        """Remember which trajectory came through here."""
        for node in reversed(self.path):
            if node.first is not None:
                break
            node.first = number


def _common(edge: list[int], sequence: list[int], start: int) -> int:
    """Return how many tokens of ``edge`` are those of ``sequence`` from ``start`` on."""
    part = sequence[start : start + len(edge)]
    if part == edge:
        return len(edge)
    low, high = 0, min(len(part), len(edge))
    # What is equal is found by comparing whole pieces, half as long each time.
    while low < high:
        middle = (low + high + 1) // 2
        if part[low:middle] == edge[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def turns_of(triplets: Sequence[Triplet]) -> list[Turn]:
    """Read turns from triplets of the form that the adapter ``triplet`` gives them."""
    return [_turn(number, triplet) for number, triplet in enumerate(triplets)]


def _turn(number: int, triplet: Triplet) -> Turn:
    prompt, response, metadata = _mapping(triplet.prompt), _mapping(triplet.response), triplet.metadata
    evidence = _mapping(metadata.get("token_ids"))
    ids = {"prompt": prompt.get("token_ids"), "response": response.get("token_ids")}
    missing = [
        f"{part} token ids: {evidence.get(part, 'missing')}" for part, value in ids.items() if value is None
    ]
    span = metadata.get("span_id")
    model = metadata.get("model")
    return Turn(
        ids["prompt"],
        ids["response"],
        response.get("logprobs"),
        triplet.reward,
        model if isinstance(model, str) else None,
        f"#{number}" + (f" [{span}]" if span else ""),
        "; ".join(missing) or None,
        metadata,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class TrajectoryExplanation(Explanation):
    """How a trace became trajectories. ``str()`` gives it as text.

    Attributes:
        trajectories: What became of each, in words.
        apart: The turns that are in none, and why.
        source: How the adapter below explains the turns.
    """

    trajectories: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    source: Explanation | None = None

    def lines(self) -> list[str]:
        """Return the text, line by line."""
        lines = [*super().lines(), *self.trajectories, *self.apart]
        return lines if self.source is None else [*lines, *(f"  {line}" for line in self.source.lines())]


class TrajectoryAdapter(TraceAdapter[list[Trajectory]]):
    """Merges the turns of an attempt into trajectories.

    Turns without the engine's token ids cannot be merged, and are left out with a warning: tokens made from text would
    not be those that the model saw and sampled.

    Args:
        triplets: The adapter that reads the turns.
    """

    def __init__(self, triplets: TraceAdapter[list[Triplet]]) -> None:
        self.triplets = triplets

    def adapt(self, source: Sequence[SpanLike], /) -> list[Trajectory]:
        """Make the trajectories of one attempt. Logs a warning if turns are left out."""
        turns = self._turns(source)
        apart = _apart(turns)
        if apart:
            self.warn(
                "%d of %d turns are in no trajectory; the first: %s. %s",
                len(apart),
                len(turns),
                apart[0],
                NO_TOKEN_IDS,
            )
        return merge_turns(turns)

    def explain(self, source: Sequence[SpanLike], /) -> TrajectoryExplanation:
        """Say which turns became which trajectory, and why others became none."""
        below = self.triplets.explain(source)
        turns = self._turns(source)
        merged = merge_turns(turns)
        apart = _apart(turns)
        empty: str | None = None
        if not merged:
            empty = below.empty_because or (
                f"none of {len(turns)} turns has token ids ({turns[0].missing}). {NO_TOKEN_IDS}"
                if turns
                else "no turn was found"
            )
        return TrajectoryExplanation(
            below.spans,
            len(merged),
            empty,
            (f"{len(apart)} of {len(turns)} turns are in no trajectory. {NO_TOKEN_IDS}",)
            if apart and merged
            else (),
            tuple(_described(number, trajectory) for number, trajectory in enumerate(merged)),
            tuple(apart),
            below,
        )

    def _turns(self, source: Sequence[SpanLike]) -> list[Turn]:
        triplets: Any = self.triplets.adapt(source)
        if not isinstance(triplets, list) or not all(
            isinstance(triplet, Triplet) for triplet in cast("list[Any]", triplets)
        ):
            raise ConfigurationError(
                f"the adapter trajectory merges triplets, and {type(self.triplets).__name__} gives none: set its "
                "'triplets' to an adapter that does, such as 'triplet'"
            )
        return turns_of(cast("list[Triplet]", triplets))


def _apart(turns: Sequence[Turn]) -> list[str]:
    return [
        f"turn {turn.name} stays apart: {turn.missing or 'its prompt is empty'}"
        for turn in turns
        if not _has_ids(turn)
    ]


def _described(number: int, trajectory: Trajectory) -> str:
    count, sampled = len(trajectory.turns), sum(trajectory.loss_mask)
    rewards = ", ".join("none" if reward is None else f"{reward:g}" for reward in trajectory.rewards)
    text = (
        f"trajectory {number}: {count} turn{'' if count == 1 else 's'}, {len(trajectory.token_ids)} tokens, "
        f"{sampled} of them sampled; rewards: {rewards}"
    )
    unknown = sum(
        mask and value is None for mask, value in zip(trajectory.loss_mask, trajectory.logprobs, strict=True)
    )
    if unknown:
        text += f"; {unknown} sampled tokens without log-probability"
    if trajectory.branch_of is not None:
        text += f"; its first {trajectory.shared} tokens are those of trajectory {trajectory.branch_of}"
    return text
