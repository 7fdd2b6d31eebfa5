"""What a store that keeps JSON values refuses, and what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_core.errors import UnserializableValueError
from lightning_core.store.values import require_json


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "x", [], {}, {"a": [1, {"b": None}]}])
def test_json_values_pass(value: Any) -> None:
    require_json(value, "input")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "input is of type object"),
        ((1, 2), "input is of type tuple"),
        ({"a": [1, {2}]}, r"input\.a\[1\] is of type set"),
        ({1: "x"}, "input has the key 1"),
        ([math.nan], r"input\[0\] is nan"),
    ],
)
def test_anything_else_is_refused_and_named(value: Any, message: str) -> None:
    with pytest.raises(UnserializableValueError, match=message):
        require_json(value, "input")


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnserializableValueError, match="contains itself"):
        require_json(value, "input")
