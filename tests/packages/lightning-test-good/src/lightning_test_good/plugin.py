"""Registers a tracer, a store and a hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core.plugin import Component, hookimpl


class TracerConfig(BaseModel):
    """Settings of the tracer."""

    model_config = ConfigDict(extra="forbid")

    service_name: str = Field("agents", description="What the spans are recorded for.")
    mode: Literal["all", "some"] = Field("all", description="How much is recorded.")
    limit: int | None = Field(None, ge=1, description="The most spans to keep.")
    tags: list[str] = Field(default_factory=list, description="Labels of every span.")
    api_key: SecretStr | None = Field(None, description="A key, which no message may show.")


class StoreConfig(BaseModel):
    """Settings of the store."""

    model_config = ConfigDict(extra="forbid")

    place: str = Field("here", description="Where it is.")


def make_tracer(**settings: Any) -> Any:
    from .sdk import GoodTracer

    return GoodTracer(**settings)


def make_store(place: str) -> Any:
    from .sdk import GoodStore

    return GoodStore(place)


def read_url(url: str) -> dict[str, Any]:
    place = url.removeprefix("good://")
    if not place:
        raise ValueError(f"{url} names no place")
    return {"place": place}


def make_hook() -> Any:
    from .sdk import GoodHook

    return GoodHook()


@hookimpl
def lightning_tracers() -> Iterable[Component[Any]]:
    return [
        Component(
            "good",
            make_tracer,
            TracerConfig,
            summary="Records nothing, well.",
            api_version=1,
            aliases=("fine",),
        )
    ]


@hookimpl
def lightning_stores() -> Iterable[Component[Any]]:
    return [
        Component("good", make_store, StoreConfig, from_url=read_url, summary="In memory.", api_version=1)
    ]


@hookimpl
def lightning_hooks() -> Iterable[Component[Any]]:
    return [Component("good", make_hook, summary="Counts rollouts.", api_version=1)]
