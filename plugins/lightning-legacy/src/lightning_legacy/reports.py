"""What an agent returned, made into the ``Rollout`` that is posted."""

from __future__ import annotations

import functools
import inspect
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core import plugin
from lightning_core.adapter.base import TraceAdapter
from lightning_core.emitter import find_final_reward, find_reward_spans, get_reward_value, parse_reward
from lightning_core.errors import ConfigurationError, InvalidOutcomeError
from lightning_core.litagent import LitAgent
from lightning_core.runner.ending import describe
from lightning_core.types import Rollout, Span, SpanLike, Task, Triplet

from .spans import read_spans, write_span

__all__ = ["Returned", "adapter_for", "failure_report", "read_result", "report"]

logger = logging.getLogger(__name__)

_FORMS = (
    "None if its spans tell, the final reward as a finite number, a list of triplets, of spans or of spans as JSON "
    "objects, or a Rollout"
)


@dataclass(frozen=True)
class Returned:
    """What an agent returned; ``None`` stands for what the trace tells.

    Attributes:
        reward: The final reward.
        triplets: The triplets.
        spans: The spans to read, in place of those that were traced.
        trace: The same as JSON objects, as the agent gave them.
        rollout: A rollout, whose other fields are kept.
    """

    reward: float | None = None
    triplets: list[Triplet] | None = None
    spans: Sequence[SpanLike] | None = None
    trace: list[dict[str, Any]] | None = None
    rollout: Rollout | None = None

    def reward_to_emit(self, emitted: Sequence[SpanLike]) -> float | None:
        """The reward if it belongs to what was traced, unless the agent has emitted just that one last."""
        if self.triplets is not None or self.trace is not None:
            return None
        rewards = find_reward_spans(emitted)
        if self.reward is None or (rewards and get_reward_value(rewards[-1]) == self.reward):
            return None
        return self.reward


def read_result(result: Any) -> Returned:
    """Tell the forms of results apart.

    Raises:
        InvalidOutcomeError: If it has none of them, or the reward is not finite.
    """
    if result is None:
        return Returned()
    if isinstance(result, Rollout):
        return _from_rollout(result)
    if not isinstance(result, list | tuple):
        try:
            return Returned(reward=parse_reward(result))
        except InvalidOutcomeError as error:
            raise InvalidOutcomeError(
                f"the agent returned what is no result: {error}. Return {_FORMS}"
            ) from error
    items = list(cast("Sequence[Any]", result))
    if not items:
        return Returned()
    if all(isinstance(item, Triplet) for item in items):
        return Returned(reward=_last_reward(items), triplets=items)
    if all(isinstance(item, ReadableSpan | Span) for item in items):
        return Returned(spans=items)
    if all(isinstance(item, Mapping) for item in items):
        trace = [dict(item) for item in items]
        return Returned(spans=read_spans(trace), trace=trace)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise InvalidOutcomeError(f"the agent returned a list of {kinds}. Return {_FORMS}")


def _from_rollout(rollout: Rollout) -> Returned:
    reward = rollout.final_reward
    return Returned(
        reward=_last_reward(rollout.triplets or ()) if reward is None else parse_reward(reward),
        triplets=rollout.triplets,
        spans=None if rollout.trace is None else read_spans(rollout.trace),
        trace=rollout.trace,
        rollout=rollout,
    )


def _last_reward(triplets: Sequence[Triplet]) -> float | None:
    rewards = (triplet.reward for triplet in reversed(triplets) if triplet.reward is not None)
    return next((parse_reward(reward) for reward in rewards), None)


def report(
    task: Task, returned: Returned, traced: Sequence[ReadableSpan], adapter: TraceAdapter[Any] | None
) -> Rollout:
    """Make the rollout to post.

    The spans are those that the agent returned, else those that were traced. They tell what it did not return: the
    adapter makes triplets of them, and the reward recorded last is the final one.

    Args:
        task: The task.
        returned: What the agent returned.
        traced: The spans that were traced, in order.
        adapter: Makes triplets of spans; without one there are those that the agent returned.
    """
    given = returned.rollout or Rollout(rollout_id=task.rollout_id)
    if given.rollout_id != task.rollout_id:
        logger.warning(
            "the agent returned a Rollout with the id %r for task %r; it is posted under the task's own",
            *(given.rollout_id, task.rollout_id),
        )
    spans = traced if returned.spans is None else returned.spans
    reward = returned.reward
    triplets, problem = returned.triplets, None
    if triplets is None and adapter is not None:
        triplets, problem = _adapted(adapter, spans, task)
    return given.replace(
        rollout_id=task.rollout_id,
        task=given.task or task,
        final_reward=find_final_reward(spans) if reward is None else reward,
        triplets=triplets,
        trace=[write_span(span) for span in spans] if returned.trace is None else returned.trace,
        metadata={**given.metadata, **({"adapter_error": problem} if problem else {})},
    )


def failure_report(task: Task, error: BaseException, traced: Sequence[ReadableSpan] = ()) -> Rollout:
    """Make the rollout of a task that failed: it has no reward and no triplets, and says why."""
    return Rollout(
        rollout_id=task.rollout_id,
        task=task,
        trace=[write_span(span) for span in traced],
        logs=["".join(traceback.format_exception(error))],
        metadata={"error": describe(error)},
    )


def _adapted(
    adapter: TraceAdapter[Any], spans: Sequence[SpanLike], task: Task
) -> tuple[list[Triplet] | None, str | None]:
    """Return the triplets; or what was wrong, which must cost neither the reward nor the trace."""
    try:
        made: Any = adapter.adapt(spans)
        strange = next((each for each in made if not isinstance(each, Triplet)), None)
    except Exception as error:
        logger.exception("the adapter failed on task %s; it is posted without triplets", task.rollout_id)
        return None, describe(error)
    if strange is not None:
        problem = (
            f"{type(adapter).__name__} makes a {type(strange).__name__}, and v0.1 posts triplets; "
            "give triplet_exporter='triplet'"
        )
        logger.error("task %s is posted without triplets: %s", task.rollout_id, problem)
        return None, problem
    return list(made), None


def adapter_for(agent: LitAgent[Any], spec: Any) -> TraceAdapter[Any] | None:
    """Resolve the adapter that makes triplets, and have it keep to the agent's ``trained_agents``.

    Args:
        agent: The agent. Its ``trained_agents`` become the adapter's ``agent_match``, unless that has its own.
        spec: The adapter, in any form that ``Trainer(adapter=...)`` takes.

    Returns:
        The adapter; ``None`` if none was given and none is installed.

    Raises:
        ConfigurationError: If the adapter cannot tell agents apart.
        PluginError: If the adapter cannot be found or its settings are wrong.
    """
    adapter: TraceAdapter[Any] | None = plugin.resolve("adapter", spec)
    wanted = agent.trained_agents
    if adapter is None:
        _say_that_none_is_installed()
        return None
    own = getattr(adapter, "agent_match", None)
    if wanted is None or own == wanted:
        return adapter
    if own is not None:
        logger.warning(
            "the agent's trained_agents=%r has no effect: the adapter's own agent_match=%r goes before it",
            *(wanted, own),
        )
        return adapter
    settings = {name: _setting(adapter, name) for name in inspect.signature(type(adapter)).parameters}
    if "agent_match" not in settings:
        raise ConfigurationError(
            f"trained_agents={wanted!r} needs an adapter with the setting agent_match, such as 'triplet'; "
            f"{type(adapter).__name__} has none"
        )
    return type(adapter)(**{**settings, "agent_match": wanted})


@functools.cache
def _say_that_none_is_installed() -> None:
    # Once, and not for each worker.
    logger.warning(
        "no adapter is installed, so rollouts are posted without triplets, unless the agent returns them. "
        "To get it: pip install lightning-adapter-triplet"
    )


def _setting(adapter: TraceAdapter[Any], name: str) -> Any:
    try:
        return getattr(adapter, name)
    except AttributeError:
        raise ConfigurationError(
            f"trained_agents cannot be handed to this {type(adapter).__name__}, which does not tell its setting "
            f"{name!r}; give it agent_match yourself"
        ) from None
