"""Recent answers are kept until their client has them, within bounds."""

from __future__ import annotations

import asyncio

import pytest
from lightning_store_http.answers import Answer, Answers, Peer
from lightning_store_http.failures import RequestError


def make_answer(size: int = 10) -> Answer:
    return Answer("application/json", b"x" * size, [])


def test_what_the_client_has_is_forgotten_and_refused():
    peer = Peer()
    for number in (1, 2, 3):
        peer.check(number)
        peer.keep(number, make_answer())
    peer.acknowledge(3)
    assert list(peer.answered) == [3]
    assert peer.size == 10
    for number in (1, 2):
        with pytest.raises(RequestError, match="answered or withdrawn"):
            peer.check(number)
    peer.check(3)
    # A request that was held up says less than the client has said since.
    peer.acknowledge(2)
    with pytest.raises(RequestError):
        peer.check(2)


def test_an_answer_that_nobody_needs_is_not_kept():
    peer = Peer()
    peer.acknowledge(5)
    peer.keep(4, make_answer())
    assert peer.answered == {}


def test_what_was_withdrawn_is_refused_when_it_comes():
    peer = Peer()
    peer.withdrawn.add(7)
    with pytest.raises(RequestError, match="7"):
        peer.check(7)
    peer.acknowledge(8)
    assert peer.withdrawn == set()


def test_the_answers_of_one_client_take_a_bounded_amount_of_memory():
    peer = Peer()
    for number in range(1, 200):
        peer.keep(number, make_answer(1024 * 1024))
    assert peer.size <= 64 * 1024 * 1024
    assert max(peer.answered) == 199
    peer.keep(200, make_answer(100 * 1024 * 1024))
    assert list(peer.answered) == [200]


def test_a_request_whose_answer_was_too_much_to_keep_is_refused_until_the_client_gives_it_up():
    peer = Peer()
    for number in (1, 2, 3):
        peer.keep(number, make_answer(40 * 1024 * 1024))
    for number in (1, 2):
        with pytest.raises(RequestError, match=f"request {number} has been carried out.*64 MiB of answers"):
            peer.check(number)
    peer.check(3)
    peer.acknowledge(2)
    assert peer.dropped == {2}
    with pytest.raises(RequestError, match="answered or withdrawn"):
        peer.check(1)


def test_clients_that_are_silent_for_long_are_forgotten():
    now = 0.0
    answers = Answers(clock=lambda: now)
    answers.of("one").keep(1, make_answer())
    now = 800.0
    answers.of("two")
    assert answers.of("one").answered
    now = 1650.0
    answers.of("three")
    assert answers.of("one").answered
    now = 3000.0
    answers.of("three")
    assert not answers.of("one").answered


async def test_a_client_that_was_forgotten_begins_nothing_again():
    now = 0.0
    answers = Answers(clock=lambda: now)
    done = asyncio.get_running_loop().create_future()
    peer = answers.of("one")
    peer.begin(7, done)
    del peer.running[7]
    peer.keep(7, make_answer())
    for _ in range(2):
        now += 5000.0
        answers.of("two")
        peer = answers.of("one")
        assert not peer.answered
        with pytest.raises(RequestError, match=r"request 7 may have been carried out.*silent for 900 s"):
            peer.check(7)
        peer.check(8)
    answers.of("three").check(7)


async def test_those_who_were_forgotten_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lightning_store_http.answers._MOST_FORGOTTEN", 2)
    now = 0.0
    answers = Answers(clock=lambda: now)
    done = asyncio.get_running_loop().create_future()
    for name in ("one", "two", "three"):
        peer = answers.of(name)
        peer.begin(1, done)
        peer.running.clear()
        now += 5000.0
    answers.of("four")
    answers.of("one").check(1)
    with pytest.raises(RequestError):
        answers.of("two").check(1)


async def test_a_client_whose_request_runs_is_not_forgotten():
    now = 0.0
    answers = Answers(clock=lambda: now)
    running = asyncio.get_running_loop().create_future()
    peer = answers.of("one")
    peer.running[1] = running
    now = 5000.0
    answers.of("two")
    assert answers.of("one") is peer
    running.cancel()
