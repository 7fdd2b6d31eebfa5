"""Puts the type and the default of a setting into words."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic.fields import FieldInfo

__all__ = ["default_text", "json_or_str", "type_name"]


def default_text(field: FieldInfo) -> str:
    """The default of a setting: ``required`` where there is none."""
    if field.is_required():
        return "required"
    # Older versions of pydantic have no such factories.
    if getattr(field, "default_factory_takes_validated_data", False):
        return "depends on the others"
    value: Any = field.get_default(call_default_factory=True)
    return "none" if value is None else json_or_str(value)


def json_or_str(value: Any) -> str:
    """A default as a user would write it; a secret stays hidden."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return "secret"
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)


def type_name(annotation: Any) -> str:
    """A type as a reader of settings wants it: ``int``, ``"a" | "b"``, ``list[str]``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None) or annotation is None:
        return "none"
    if annotation in (SecretStr, SecretBytes):
        return "secret"
    if annotation is Any:
        return "any"
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(json_or_str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if origin is not None and arguments:
        inner = ", ".join("..." if argument is ... else type_name(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))
