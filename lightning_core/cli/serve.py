"""``lightning-core store serve``: a store for other processes and machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from lightning_core.bridge import run_sync
from lightning_core.cli.serving import end_signals, read_token
from lightning_core.execution.garbage import rare_collections
from lightning_core.plugin import resolve

__all__ = ["serve"]

_TOKEN: Final = "LIGHTNING_CORE_STORE_TOKEN"


@click.command()
@click.option(
    "--store",
    "spec",
    envvar="LIGHTNING_CORE_STORE",
    required=True,
    show_envvar=True,
    help="The store, for instance sqlite:///runs.db. It is made if it does not exist.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The interface to listen on.")
@click.option("--port", default=4747, show_default=True, help="The port; 0 picks a free one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Holds the token that clients must show; written if it does not exist. Otherwise {_TOKEN}, or a new one.",
)
@click.option("--forward-to", metavar="URL", help="An OTLP endpoint that gets a copy of every span.")
def serve(spec: str, host: str, port: int, token_file: Path | None, forward_to: str | None) -> None:
    """Serve a store over HTTP until Ctrl+C or SIGTERM.

    Clients open it as --store http://HOST:PORT. Any other interface than the loopback needs a token file or variable.
    """
    try:
        from lightning_core.store import LightningStoreServer
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    token = read_token(token_file) if token_file is not None else os.environ.get(_TOKEN) or None
    store = resolve("store", spec)
    try:
        # The signals come first: somebody may act on what is said below at once.
        with (
            rare_collections(),
            end_signals() as end,
            LightningStoreServer(store, host, port, token=token, forward_to=forward_to) as server,
        ):
            click.echo(f"serving {store.location} at {server.url}")
            click.echo(
                f"clients connect with --store {server.url}, or Trainer(store={server.url!r}), and the token:"
            )
            click.echo(f"  export {_TOKEN}={_shown_token(server.token, token_file, given=token is not None)}")
            if not store.capabilities.durable:
                click.secho("this store keeps nothing beyond its process", fg="yellow")
            # In steps, since a wait without a limit lets no signal through on Windows.
            while not end.wait(0.5):
                if not server.running:
                    raise click.ClickException("the server has ended by itself; its log tells more")
            click.echo("stopping")
    finally:
        run_sync(store.close())


def _shown_token(token: str, path: Path | None, *, given: bool) -> str:
    """Show where the token is, and the token itself only if it is nowhere else."""
    if path is not None:
        return f'"$(cat {path})"'
    return "…  (as here)" if given else token
