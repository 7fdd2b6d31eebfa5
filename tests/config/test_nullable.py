"""``nullable_str``, ``nullable_int`` and ``nullable_float``: text that says that there is nothing."""

from __future__ import annotations

import pytest

from lightning_core.config import nullable_float, nullable_int, nullable_str


@pytest.mark.parametrize("text", ["none", "None", "NULL", "nil", "~", "", "  none ", None])
def test_what_stands_for_nothing_is_none(text: str | None) -> None:
    assert nullable_str(text) is None
    assert nullable_int(text) is None
    assert nullable_float(text) is None


@pytest.mark.parametrize("text", ["nothing", "0", "False", " a b "])
def test_any_other_text_is_left_as_it_is(text: str) -> None:
    assert nullable_str(text) == text


def test_numbers_are_read() -> None:
    assert nullable_int("-8") == -8
    assert nullable_float("1e-3") == 0.001
    assert nullable_float("3") == 3.0


def test_what_is_no_number_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match=r"'0.5' is no integer; give one such as 8, or 'none'"):
        nullable_int("0.5")
    with pytest.raises(ValueError, match=r"'many' is no number; give one such as 0.5, or 'none'"):
        nullable_float("many")
