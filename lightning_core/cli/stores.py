"""How commands are told of a store, and open it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lightning_core.plugin import resolve
from lightning_core.store.base import LightningStore

__all__ = ["open_store", "store_option", "store_option_for"]

F = TypeVar("F", bound=Callable[..., Any])

# A command has somebody who waits for it, unlike a run that is to outlive the restart of a server.
_PATIENCE_SECONDS = 5.0


def store_option_for(purpose: str) -> Callable[[F], F]:
    """Make the option by which a command is told of its store.

    Args:
        purpose: What the help says of it.
    """
    return click.option(
        "--store", "spec", envvar="LIGHTNING_CORE_STORE", required=True, show_envvar=True, help=purpose
    )


store_option = store_option_for("The store, for instance sqlite:///runs.db.")
"""The option of commands that look at a store."""


def open_store(spec: str) -> LightningStore:
    """Open a store that is there already. One that is away is not waited for as long as a run would.

    Raises:
        click.ClickException: If it keeps nothing beyond its process.
    """
    # For stores that would otherwise begin a new one.
    store = resolve("store", spec, must_exist=True, retry_seconds=_PATIENCE_SECONDS)
    if not store.capabilities.durable:
        raise click.ClickException(
            f"a store {spec!r} keeps nothing beyond its process, so there are no runs to look at; "
            "give --store sqlite:///runs.db or another durable one"
        )
    return store
