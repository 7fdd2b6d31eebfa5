"""What a plugin registers: a component of some kind, under a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

__all__ = ["API_VERSION", "KINDS", "NAME", "Component", "EmptyConfig", "Kind"]

T_co = TypeVar("T_co", covariant=True)

API_VERSION = 1
"""Version of the plugin interface. Plugin authors write the literal that they were written for."""

Kind = Literal[
    "tracer", "store", "runner", "adapter", "credit", "algorithm", "strategy", "llm_proxy", "engine", "hook"
]
"""What a component is for."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds of components."""

NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
"""What the name of a component looks like."""


class EmptyConfig(BaseModel):
    """The settings of a component that has none."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


@dataclass(frozen=True)
class Component(Generic[T_co]):
    """One part that users select by name.

    Attributes:
        name: What a user types: ``[a-z][a-z0-9_-]*``.
        factory: Makes the part; takes the fields of ``config`` as keywords. Imports heavy packages when it
            is called.
        config: Pydantic model of the settings. Give it ``extra="forbid"`` and use ``SecretStr`` for keys.
        from_url: Turns ``"<name>:..."`` into settings, for parts that a URL can describe, such as stores.
        summary: One line for listings.
        api_version: The :data:`API_VERSION` that the plugin was written for, as a literal.
        aliases: Further names for the same part. A package lists each as an entry point of its own, to the
            same module.
    """

    name: str
    factory: Callable[..., T_co]
    config: type[BaseModel] = EmptyConfig
    from_url: Callable[[str], dict[str, Any]] | None = None
    summary: str = ""
    api_version: int = 1
    aliases: tuple[str, ...] = ()
