"""``python -m lightning_core`` is the ``lightning-core`` command."""

from lightning_core.cli import main

main(prog_name="lightning-core")
