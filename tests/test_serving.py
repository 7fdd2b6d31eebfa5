"""What servers have in common."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lightning_core.serving import StartStop, bind, listening_problem, new_loop


class Server(StartStop):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def start(self) -> str:
        self.calls.append(("start", threading.get_ident()))
        return "what a server says when it has started"

    def stop(self) -> None:
        self.calls.append(("stop", threading.get_ident()))


def test_a_block_starts_and_stops_also_when_it_fails():
    server = Server()
    with server as entered:
        assert entered is server
        assert [what for what, _ in server.calls] == ["start"]
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert [what for what, _ in server.calls] == ["start", "stop"] * 2


async def test_an_async_block_does_so_in_another_thread():
    server = Server()
    async with server as entered:
        assert entered is server
    assert [what for what, _ in server.calls] == ["start", "stop"]
    assert threading.get_ident() not in [thread for _, thread in server.calls]


@pytest.mark.parametrize(
    ("host", "token", "problem"),
    [
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("localhost", None, None),
        ("0.0.0.0", None, "a thing on '0.0.0.0' can be reached from other machines: give it a token"),
        ("192.168.1.2", None, "a thing on '192.168.1.2' can be reached from other machines"),
        ("0.0.0.0", "long-enough", None),
        ("127.0.0.1", "short", "at least 8 characters"),
        ("127.0.0.1", "with\nlines and more", "printable ASCII"),
        ("127.0.0.1", "schlüssel", "printable ASCII"),
    ],
)
def test_others_may_only_come_in_with_a_token(host: str, token: str | None, problem: str | None):
    """Trap 26."""
    found = listening_problem("a thing", host, token)
    assert found == problem if problem is None else problem in (found or "")


def test_a_port_is_had_by_one_server():
    """Trap 25."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert not first.getblocking()
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be had .*choose another port"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()


def test_an_interface_that_does_not_exist_is_named():
    with pytest.raises(OSError, match=r"interface 'no-such-host\.invalid'"):
        bind("no-such-host.invalid", 0)


def test_a_loop_runs():
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(asyncio.sleep(0, "done")) == "done"
