"""Text becomes a value of the type that its setting has, and mappings of several layers become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from lightning_core.config.values import Text, merged, read_text, settled


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "4", 4),
        (float, "1e-3", 0.001),
        (bool, "true", True),
        (str, "4", "4"),
        (str, "{question}", "{question}"),
        (str, "none", "none"),
        (str | None, "none", None),
        (int | None, "~", None),
        (int | str, "4", "4"),
        (list[str], "[a, b]", ["a", "b"]),
        (str | list[str], "[a, b]", ["a", "b"]),
        (str | list[str], "a", "a"),
        (str | dict[str, Any], "{a: 1}", {"a": 1}),
        (dict[str, str], "{a: b}", {"a": "b"}),
        (Literal["full", "1"], "1", "1"),
        (Literal[1, 2], "2", 2),
        (Path, "here", "here"),
        (SecretStr, "123", "123"),
        (Any, "123", 123),
        (Any, "1e-3", 0.001),
        (Any, "[1, {a: b}]", [1, {"a": "b"}]),
        (Any, "a: [", "a: ["),
        ("int | None", "4", 4),
        ("Unheard | None", "4", 4),
        (int, "four", "four"),
    ],
)
def test_text_is_read_as_the_type_says(annotation: Any, text: str, value: Any) -> None:
    read = read_text(annotation, text)
    assert read == value
    assert type(read) is type(value)


def test_mappings_are_merged_and_anything_else_is_replaced() -> None:
    tree = {"a": {"b": {"c": 1, "d": 2}, "e": [1]}}
    assert merged(tree, ("a",), {"b": {"c": 3}, "e": [2]}) == {"a": {"b": {"c": 3, "d": 2}, "e": [2]}}
    assert merged(tree, ("a", "b"), 3) == {"a": {"b": 3, "e": [1]}}
    assert merged(tree, ("a", "b", "x"), 3) == {"a": {"b": {"c": 1, "d": 2, "x": 3}, "e": [1]}}
    assert tree == {"a": {"b": {"c": 1, "d": 2}, "e": [1]}}, "what was there is left as it was"


def test_texts_inside_of_mappings_are_read_too() -> None:
    assert settled({"a": Text("1"), "b": {"c": Text("x")}, "d": "1"}) == {"a": 1, "b": {"c": "x"}, "d": "1"}
