"""Rewards: record them as spans, and find them again in spans, also in those that AgentOps writes."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, TypeVar, cast

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import InvalidOutcomeError
from lightning_core.types import SpanAttributeNames, SpanLike, SpanNames

from .context import emit_span

__all__ = [
    "emit_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "is_reward_span",
    "parse_reward",
    "reward",
]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=SpanLike)

_NAME = SpanNames.REWARD.value
_VALUE = SpanAttributeNames.REWARD.value
_AGENTOPS = ("agentops.task.output", "agentops.entity.output")


def parse_reward(value: Any) -> float:
    """Return a reward as a float.

    Args:
        value: An int, float, bool (0 or 1), ``Decimal``, ``Fraction``, numpy scalar, or an array or tensor
            that holds a single number and has no dimensions.

    Raises:
        InvalidOutcomeError: If it is no number, not finite, or too large for a float. This is a ``TypeError``
            and a ``ValueError``.
    """
    number: Any = value
    if not isinstance(number, (int, float, Real, Decimal)):
        # Scalars of numpy and the like are known by what they can do, so that none of these libraries is
        # imported.
        item = getattr(number, "item", None)
        if callable(item) and getattr(number, "ndim", None) == 0:
            number = item()
    if not isinstance(number, (int, float, Real, Decimal)):
        raise InvalidOutcomeError(
            f"a reward must be a number (int, float, bool or a numpy scalar), not {_describe(value)}"
        )
    try:
        result = float(number)
    except (OverflowError, ValueError) as error:
        raise InvalidOutcomeError(
            f"a reward must fit a float; {_describe(value)} does not: {error}"
        ) from error
    if not math.isfinite(result):
        raise InvalidOutcomeError(
            f"a reward must be finite, not {result}: it would poison every average it enters. "
            "Return None or emit nothing when there is no reward"
        )
    return result


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def emit_reward(reward: float) -> ReadableSpan:
    """Record a reward as a span of the current trace.

    Args:
        reward: The reward; whatever :func:`parse_reward` takes.

    Returns:
        The span, which has ended. Outside any trace it is stored nowhere.

    Raises:
        InvalidOutcomeError: If it is no finite number.
    """
    return emit_span(_NAME, {_VALUE: parse_reward(reward)})


def reward(fn: F) -> F:
    """Decorate a function that computes a reward, so that what it returns is also recorded.

    Works on plain and async functions, and on methods. The function still returns what it returned before,
    and keeps its type. ``None`` means that there is no reward: nothing is recorded, and a warning is logged.

    Raises:
        InvalidOutcomeError: If ``fn`` is a generator or not callable, and when it returns no finite number.
    """
    if not callable(fn):
        raise InvalidOutcomeError(f"@reward decorates a function, not {_describe(fn)}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidOutcomeError(
            f"@reward decorates a function that returns a number; {_name(fn)} is a generator"
        )
    # An object is called through its type.
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):

        @functools.wraps(fn)
        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            return _record(fn, await fn(*args, **kwargs))

        return cast(F, async_wrapper)

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return _record(fn, fn(*args, **kwargs))

    return cast(F, wrapper)


def _record(fn: Callable[..., Any], value: Any) -> Any:
    if value is None:
        logger.warning("reward function %s returned None: no reward is recorded", _name(fn))
        return value
    try:
        emit_reward(value)
    except InvalidOutcomeError as error:
        raise InvalidOutcomeError(f"reward function {_name(fn)}: {error}") from error
    return value


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)


def is_reward_span(span: SpanLike) -> bool:
    """Say whether a span records a reward: one of ours, or one of AgentOps' reward functions."""
    return span.name == _NAME or _agentops_payload(span) is not None


def get_reward_value(span: SpanLike) -> float | None:
    """Return the reward that a span records.

    Returns:
        The reward, or ``None`` if the span is no reward span, or recorded that there was none. What is
        recorded as a reward but is no finite number also gives ``None``, and a warning is logged.
    """
    if span.name == _NAME:
        value = (span.attributes or {}).get(_VALUE)
    else:
        payload = _agentops_payload(span)
        value = payload.get("value") if payload is not None else None
    if value is None:
        return None
    try:
        return parse_reward(value)
    except InvalidOutcomeError as error:
        logger.warning("the reward of span %r is ignored: %s", span.name, error)
        return None


def find_reward_spans(spans: Sequence[S]) -> list[S]:
    """Return the spans that record a reward, in the order given."""
    return [span for span in spans if is_reward_span(span)]


def find_final_reward(spans: Sequence[SpanLike]) -> float | None:
    """Return the last reward that the spans record, or ``None`` if there is none.

    Args:
        spans: Spans in the order in which the store or the tracer returned them, that is, by ``sequence_id``.
            Timestamps order nothing.
    """
    for span in reversed(spans):
        value = get_reward_value(span)
        if value is not None:
            return value
    return None


def _agentops_payload(span: SpanLike) -> Mapping[str, Any] | None:
    """Return ``{"type": "reward", "value": ...}`` as AgentOps keeps it, as JSON text or as a mapping."""
    attributes = cast("Mapping[str, Any] | None", span.attributes)
    if not attributes:
        return None
    for key in _AGENTOPS:
        output = attributes.get(key)
        if isinstance(output, str):
            # Most outputs are long texts that are no rewards.
            if '"reward"' not in output:
                continue
            try:
                output = json.loads(output)
            except ValueError:
                continue
        if isinstance(output, Mapping):
            payload = cast("Mapping[str, Any]", output)
            if payload.get("type") == "reward":
                return payload
    return None
