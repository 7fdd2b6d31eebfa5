"""Emitters: what an agent calls to record rewards, messages, objects, exceptions and operations as spans."""

from .annotation import emit_annotation, operation
from .exception import emit_exception
from .message import emit_message
from .object import emit_object
from .reward import (
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    is_reward_span,
    parse_reward,
    reward,
)

__all__ = [
    "emit_annotation",
    "emit_exception",
    "emit_message",
    "emit_object",
    "emit_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "is_reward_span",
    "operation",
    "parse_reward",
    "reward",
]
