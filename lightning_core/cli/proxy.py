"""``lightning-core proxy``: pass agents' calls on to models and record them, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from lightning_core.bridge import run_sync
from lightning_core.cli.serving import end_signals, given_token, serve_until, serving_options
from lightning_core.cli.stores import store_option_for
from lightning_core.errors import ConfigurationError
from lightning_core.execution.garbage import rare_collections
from lightning_core.plugin import resolve

__all__ = ["proxy"]

_TOKEN: Final = "LIGHTNING_CORE_PROXY_TOKEN"
_KEY: Final = "LIGHTNING_CORE_UPSTREAM_KEY"
_PATIENCE_SECONDS: Final = 5.0
_ENGINES: Final = ("auto", "vllm", "sglang", "llamacpp", "openai", "none")


@click.group()
def proxy() -> None:
    """Pass agents' calls on to models, and record them."""


@proxy.command()
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[MODEL=]URL",
    help="An OpenAI-compatible endpoint, for one model or for all. May be given several times.",
)
@click.option(
    "--models",
    "models_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON list of upstream models with their settings. SIGHUP has it read again.",
)
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default="auto",
    show_default=True,
    help="What serves at each --upstream, and so how it is asked for token ids.",
)
@store_option_for("Where spans go, for instance http://127.0.0.1:4747.")
@serving_options(
    4748,
    f"Holds the token that clients send as their API key; written if it does not exist. Otherwise {_TOKEN}.",
)
def serve(
    upstreams: tuple[str, ...],
    models_file: Path | None,
    engine: str,
    spec: str,
    host: str,
    port: int,
    token_file: Path | None,
) -> None:
    """Serve the LLM proxy until Ctrl+C or SIGTERM.

    Agents call http://HOST:PORT/rollout/ROLLOUT/attempt/ATTEMPT/v1, and each call becomes a span of that attempt. The
    key of every --upstream is in the variable LIGHTNING_CORE_UPSTREAM_KEY, if it needs one.
    """
    try:
        from lightning_core.llm_proxy import LLMProxy
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    given = [_read_upstream(text, engine) for text in upstreams]
    if not given and models_file is None:
        raise click.UsageError("say where the models are: --upstream URL, or --models FILE")

    def model_list() -> list[dict[str, Any]]:
        return given + (_read_models(models_file) if models_file is not None else [])

    token = given_token(token_file, _TOKEN)
    server = LLMProxy(model_list(), host=host, port=port, token=token)
    store = resolve("store", spec, retry_seconds=_PATIENCE_SECONDS)
    try:
        if type(store).__name__ == "InMemoryLightningStore":
            raise click.ClickException(
                f"nobody else can read a store {spec!r} of this process; serve one with `lightning-core store serve`"
            )
        # The signals come first: somebody may act on what is said below at once.
        with rare_collections(), end_signals() as end:
            server.set_store(store)
            with server, _read_again(lambda: server.update_model_list(model_list())):
                click.echo(f"passing calls on at {server.url}, and recording them in {store.location}")
                if token is not None:
                    shown = f'"$(cat {token_file})"' if token_file is not None else "…  (as here)"
                    click.echo(f"clients send the token as their key: export OPENAI_API_KEY={shown}")
                serve_until(end, server, "proxy")
            if server.lost:
                raise click.ClickException(f"{server.lost} spans of model calls are lost; the log tells why")
    finally:
        run_sync(store.close())


def _read_upstream(text: str, engine: str) -> dict[str, Any]:
    name, separator, url = text.partition("=")
    if not separator or "://" in name:
        name, url = "*", text
    settings: dict[str, Any] = {"name": name, "base_url": url, "engine": engine}
    if key := os.environ.get(_KEY):
        settings["api_key"] = key
    return settings


def _read_models(path: Path) -> list[dict[str, Any]]:
    try:
        models = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"the list of models {path} cannot be read: {error}") from error
    if not isinstance(models, list):
        raise click.ClickException(f"the list of models {path} holds no JSON list")
    return models  # pyright: ignore[reportUnknownVariableType] - checked by the proxy


@contextmanager
def _read_again(update: Callable[[], None]) -> Generator[None]:
    """Update the list of models whenever SIGHUP comes, where there is such a signal."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return

    def read() -> None:
        try:
            update()
        except (click.ClickException, ConfigurationError) as error:
            click.secho(f"the models stay as they were: {error}", fg="yellow", err=True)
        else:
            click.echo("the list of models was read again")

    def begin(*_: Any) -> None:
        # Not within the handler, which interrupts whoever holds the locks.
        threading.Thread(target=read).start()

    before = signal.signal(signal.SIGHUP, begin)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
