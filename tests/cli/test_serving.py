"""Commands that serve run until a signal comes, or their server has ended by itself."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from lightning_core.cli.serving import end_signals, given_token, serve_until


@dataclass
class Server:
    running: bool


def test_a_signal_ends_it(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGTERM)
    with end_signals() as end:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        serve_until(end, Server(running=True), "thing")
    assert capsys.readouterr().out == "stopping\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_has_ended_by_itself_is_an_error():
    with pytest.raises(click.ClickException, match="the thing has ended by itself"):
        serve_until(threading.Event(), Server(running=False), "thing")


def test_the_token_is_that_of_the_file_or_else_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("A_TOKEN", "of the environment")
    file = tmp_path / "token"
    drawn = given_token(file, "A_TOKEN")
    assert drawn is not None
    assert drawn == file.read_text().strip()
    assert len(drawn) > 20
    assert given_token(file, "A_TOKEN") == drawn
    assert given_token(None, "A_TOKEN") == "of the environment"
    monkeypatch.setenv("A_TOKEN", "")
    assert given_token(None, "A_TOKEN") is None
