"""What a user wrote for one key, and how text becomes a value of the type that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from lightning_core.config.files import KeyPath, read_yaml
from lightning_core.config.nullable import nullable_str

__all__ = ["NO_VALUE", "Given", "Text", "blamed", "dotted", "merged", "read_text", "settled"]


@dataclass(frozen=True)
class Given:
    """One value that the user wrote.

    Attributes:
        key: Where it belongs, such as ``("trainer", "store", "path")``.
        value: A value from a file, a :class:`Text` from elsewhere, or :data:`NO_VALUE` of an option without one.
        source: Where it stands, such as ``run.yaml, line 3``; begins messages.
        layer: What is given in a higher layer wins: files in their order, variables, options.
        append: Whether it is to be added to a list.
        places: Says where something inside of the value stands, where that is known.
    """

    key: KeyPath
    value: Any
    source: str
    layer: int
    append: bool = False
    places: Callable[[KeyPath], str] | None = None

    def where(self, *inside: str) -> str:
        """Say where the value stands, or something inside of it."""
        return self.places(inside) if self.places is not None and inside else self.source


NO_VALUE: Final = object()
"""Stands for the value that does not follow an option."""


class Text(str):
    """Text that stands for a value of a type which only its key tells."""

    __slots__ = ()


def dotted(key: KeyPath) -> str:
    """Return a key as messages and options show it."""
    return ".".join(key)


def blamed(source: str, message: str) -> str:
    """Put in front of a message, which begins with a key, where that key stands."""
    key, colon, rest = message.partition(": ")
    if colon and source.removeprefix("--").rstrip("+").replace("-", "_") == key:
        return f"{source}: {rest}"
    return f"{source}: {message}" if source else message


def read_text(annotation: Any, text: str) -> Any:
    """Read text as a value of a type, as well as it goes.

    Text for a string is taken as it is; anything else is read as YAML, and so as JSON. What names nothing, such as
    ``none``, is ``None`` where that is allowed.
    """
    text = str(text)
    if annotation is Any:
        return _yaml_or_text(text)
    try:
        return _read_as(TypeAdapter[Any](annotation), text)
    except (PydanticUserError, TypeError, NameError, SyntaxError):
        # Only the name of the type is known, or it is of no kind that can be checked.
        return _yaml_or_text(text)


def _read_as(adapter: TypeAdapter[Any], text: str) -> Any:
    if nullable_str(text) is None and _fits(adapter, None):
        return None
    candidates = [(text, True), (_yaml_or_text(text), False), (text, False)]
    if text.lstrip().startswith(("[", "{")):
        candidates = [candidates[1], candidates[0]]
    for candidate, strict in candidates:
        if _fits(adapter, candidate, strict=strict):
            return candidate
    # What is wrong with it is found again, and said, where it is used.
    return text


def merged(tree: dict[str, Any], key: KeyPath, value: Any) -> dict[str, Any]:
    """Return nested mappings with one value set; mappings are merged, anything else is replaced."""
    head, *rest = key
    there = tree.get(head)
    below: dict[str, Any] = dict(cast("Mapping[str, Any]", there)) if isinstance(there, Mapping) else {}
    if rest:
        return {**tree, head: merged(below, tuple(rest), value)}
    if isinstance(value, Mapping) and isinstance(there, Mapping):
        for name, inner in cast("Mapping[str, Any]", value).items():
            below = merged(below, (str(name),), inner)
        return {**tree, head: below}
    return {**tree, head: value}


def settled(value: Any, annotation: Any = Any) -> Any:
    """Return a value in which every :class:`Text` has been read."""
    if isinstance(value, Text):
        return read_text(annotation, value)
    if isinstance(value, dict):
        return {name: settled(inner) for name, inner in cast("dict[str, Any]", value).items()}
    return value


def _fits(adapter: TypeAdapter[Any], value: Any, *, strict: bool = False) -> bool:
    try:
        adapter.validate_python(value, strict=strict or None)
    except PydanticUserError:
        # Of the type, not of the value; depending on the version it is one of those below.
        raise
    except (ValidationError, ValueError, TypeError):
        return False
    return True


def _yaml_or_text(text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError:
        return text
