"""Rewards that programs print: what is one, what is none, and what the error says."""

import pytest

from lightning_core.errors import InvalidOutcomeError
from lightning_core.litagent.printed import last_line, read_reward


def read(text: str) -> float | None:
    return read_reward(text, place="the last line", label="agent x")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("0.5", 0.5),
        ("  -3\t\r\n", -3.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("+1.", 1.0),
        ("true", 1.0),
        ("false", 0.0),
        ('{"reward": 2}', 2.0),
        ('{"reward": true, "why": "it fits"}', 1.0),
    ],
)
def test_numbers_and_objects_are_rewards(text: str, reward: float) -> None:
    value = read(text)
    assert value == reward
    assert type(value) is float


def test_null_says_that_there_is_no_reward() -> None:
    assert read('{"reward": null}') is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "done",
            "nan",
            "NaN",
            "inf",
            "-Infinity",
            "1_000",
            '"0.5"',
            "null",
            "[1]",
            "0.5 points",
            "True",
        ),
        *('{"score": 1}', '{"reward": "1"}', '{"reward": NaN}', '{"reward": [1]}', "1" * 5000, "[" * 100_000),
    ],
)
def test_anything_else_is_refused_and_shown(text: str) -> None:
    with pytest.raises(
        InvalidOutcomeError, match="the last line of agent x should be a finite number"
    ) as caught:
        read(text)
    assert repr(text)[1:100].rstrip("'") in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["log\n0.5", "log\n0.5\n", "log\r\n0.5\r\n\n  \n", "10 %\r100 %\r0.5", "0.5"]
)
def test_last_line_that_is_not_blank_counts(text: str) -> None:
    assert last_line(text, cut=False, label="agent x") == "0.5"


@pytest.mark.parametrize("text", ["", "\n \n\r\n"])
def test_silence_is_an_error(text: str) -> None:
    with pytest.raises(InvalidOutcomeError, match="agent x has written nothing to its standard output"):
        last_line(text, cut=False, label="agent x")


def test_line_whose_beginning_is_missing_is_no_reward() -> None:
    with pytest.raises(InvalidOutcomeError, match="longer than its max_output_bytes"):
        last_line("23", cut=True, label="agent x")
    assert last_line("45\n23", cut=True, label="agent x") == "23"
