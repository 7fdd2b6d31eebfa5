"""``lightning-core store``: serve a store to other machines, and tidy it up."""

from __future__ import annotations

import click

__all__ = ["store"]


@click.group()
def store() -> None:
    """Serve a store over HTTP, and look after what it keeps."""
