"""The ``lightning-core`` command. The module of a command is imported when it is asked for."""

from __future__ import annotations

import difflib
import logging
from importlib import import_module
from typing import Any, Final

import click

import lightning_core
from lightning_core.errors import LightningError

__all__ = ["COMMANDS", "main"]

COMMANDS: Final = {
    "doctor": "lightning_core.cli.doctor",
    "plugins": "lightning_core.cli.plugins",
    "proxy": "lightning_core.cli.proxy",
    "run": "lightning_core.cli.run",
    "runs": "lightning_core.cli.runs",
    "store": "lightning_core.cli.store",
}
"""Command to the module that defines it under the same name."""


class _LazyGroup(click.Group):
    """Imports a command's module on use, and prints our own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(import_module(COMMANDS[cmd_name]), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LightningError as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lightning_core.__version__, prog_name="lightning-core")
@click.option("--debug", is_flag=True, help="Log everything, and show tracebacks.")
def main(debug: bool) -> None:
    """Train, look at what is installed and at stored runs, and serve the stores and the LLM proxy of lightning-core."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )
