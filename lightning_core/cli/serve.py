"""``lightning-core store serve``: a store for other processes and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from lightning_core.bridge import run_sync
from lightning_core.cli.serving import end_signals, given_token, serve_until, serving_options
from lightning_core.cli.stores import store_option_for
from lightning_core.execution.garbage import rare_collections
from lightning_core.plugin import resolve

__all__ = ["serve"]

_TOKEN: Final = "LIGHTNING_CORE_STORE_TOKEN"


@click.command()
@store_option_for("The store, for instance sqlite:///runs.db. It is made if it does not exist.")
@serving_options(
    4747,
    f"Holds the token that clients must show; written if it does not exist. Otherwise {_TOKEN}, or a new one.",
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
    token = given_token(token_file, _TOKEN)
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
            serve_until(end, server, "server")
    finally:
        run_sync(store.close())


def _shown_token(token: str, path: Path | None, *, given: bool) -> str:
    """Show where the token is, and the token itself only if it is nowhere else."""
    if path is not None:
        return f'"$(cat {path})"'
    return "…  (as here)" if given else token
