"""What commands that serve have in common: they run until a signal comes, and know who may use them by a token."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

__all__ = ["end_signals", "read_token"]


@contextmanager
def end_signals() -> Generator[threading.Event]:
    """Give an event that is set by the signals that ask for the end."""
    end = threading.Event()

    def set_end(*_: Any) -> None:
        end.set()

    before = {number: signal.signal(number, set_end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_token(path: Path) -> str:
    """Read the token, or draw one and write it where nobody else can read it."""
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(24)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise click.ClickException(
                f"the token file {path} cannot be written: {error.strerror}"
            ) from error
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        return token
    except OSError as error:
        raise click.ClickException(f"the token file {path} cannot be read: {error.strerror}") from error
    if not token:
        raise click.ClickException(f"the token file {path} is empty; remove it to have one drawn")
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        click.secho(f"others on this machine may read {path}: chmod 600 {path}", fg="yellow", err=True)
    return token
