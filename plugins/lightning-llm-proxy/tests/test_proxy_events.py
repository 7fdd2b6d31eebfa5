"""Streams of events are cut into whole events, wherever their bytes are split."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_llm_proxy.events import EventSplitter, read_event

ENDS = ["\n", "\r\n", "\r"]


def stream(end: str) -> tuple[bytes, list[tuple[str | None, bytes | None]]]:
    events = [
        (["data: one"], (None, b"one")),
        ([": a comment"], (None, None)),
        (["event: named", "data: two"], ("named", b"two")),
        (["data:first", "data: second"], (None, b"first\nsecond")),
        (["id: 7", "data: \u00fcber \U0001f44d"], (None, "\u00fcber \U0001f44d".encode())),
        (["data: [DONE]"], (None, b"[DONE]")),
    ]
    text = "".join("".join(line + end for line in lines) + end for lines, _ in events)
    return text.encode(), [expected for _, expected in events]


@pytest.mark.parametrize("end", ENDS)
@given(cuts=st.lists(st.integers(0, 200)))
def test_events_are_whole_wherever_bytes_are_split(end: str, cuts: list[int]):
    data, expected = stream(end)
    splitter = EventSplitter()
    events: list[bytes] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, stop in itertools.pairwise(edges):
        events += splitter.feed(data[begin:stop])
    read = [read_event(event) for event in events]
    # Between "\r" and "\n" nobody knows yet whether the line has ended: the rest is an empty line.
    assert [each for each in read if each != (None, None)] == [
        each for each in expected if each != (None, None)
    ]
    assert b"".join(events) + splitter.rest() == data


def test_every_single_byte_may_come_alone():
    data, expected = stream("\n")
    splitter = EventSplitter()
    events = [event for byte in data for event in splitter.feed(bytes([byte]))]
    assert [read_event(event) for event in events] == expected
    assert splitter.rest() == b""


def test_an_event_is_given_as_soon_as_it_is_complete():
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n") == []
    assert splitter.feed(b"\ndata: 2") == [b"data: 1\n\n"]
    assert splitter.rest() == b"data: 2"
    assert splitter.rest() == b""


def test_a_long_event_in_many_pieces_is_searched_once():
    """An event of a megabyte, byte by hundred bytes: searching it anew each time would take minutes."""
    splitter = EventSplitter()
    text = json.dumps({"image": "x" * 1_000_000}).encode()
    for begin in range(0, len(text), 100):
        assert splitter.feed(text[begin : begin + 100]) == []
    assert splitter.feed(b"\n\n") == [text + b"\n\n"]
