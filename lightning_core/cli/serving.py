"""What commands that serve have in common: they run until a signal comes, and know who may use them by a token."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

__all__ = ["end_signals", "given_token", "serve_until", "serving_options"]

F = TypeVar("F", bound=Callable[..., Any])


class _Running(Protocol):
    @property
    def running(self) -> bool: ...


def serving_options(port: int, token: str) -> Callable[[F], F]:
    """Make the options that say where a command listens, and who may use it.

    Args:
        port: The port unless the user gives another one.
        token: What the help says of the file with the token.
    """
    options = (
        click.option("--host", default="127.0.0.1", show_default=True, help="The interface to listen on."),
        click.option("--port", default=port, show_default=True, help="The port; 0 picks a free one."),
        click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help=token),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


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


def serve_until(end: threading.Event, server: _Running, what: str) -> None:
    """Wait for the end while a server serves.

    Args:
        end: What :func:`end_signals` gives.
        server: The server.
        what: What to call it.

    Raises:
        click.ClickException: If it ends by itself.
    """
    # In steps, since a wait without a limit lets no signal through on Windows.
    while not end.wait(0.5):
        if not server.running:
            raise click.ClickException(f"the {what} has ended by itself; its log tells more")
    click.echo("stopping")


def given_token(path: Path | None, variable: str) -> str | None:
    """Return the token that the user gives: that of a file, or that of a variable of the environment."""
    return _read_token(path) if path is not None else os.environ.get(variable) or None


def _read_token(path: Path) -> str:
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
