"""Reads named resources: prompt templates, models and other kinds, by the name that agents know them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError

from lightning_core.config.files import KeyPath, read_yaml
from lightning_core.config.values import Given, Text, blamed, dotted, merged, settled
from lightning_core.errors import ConfigurationError
from lightning_core.types import NamedResources, resource_kinds

__all__ = ["read_resources"]

_WANTED: Final = (
    "resources are mappings, by their names, such as "
    '{"prompt": {"resource_type": "prompt_template", "template": "{question}"}}'
)


def read_resources(key: KeyPath, given: Iterable[Given]) -> NamedResources | None:
    """Read what the user wrote for a parameter that takes named resources.

    Args:
        key: The parameter.
        given: What was written, lower layers first. Mappings are merged.

    Returns:
        The resources; ``None`` if the last word is that there are none.

    Raises:
        ConfigurationError: If something is no resource.
    """
    tree: dict[str, Any] = {"": {}}
    last: dict[KeyPath, Given] = {}
    for one in given:
        # Texts further inside, such as those of templates, are what their field says.
        value = _mapping(one) if len(one.key) <= len(key) + 1 else one.value
        inside = one.key[len(key) :]
        tree = {"": None} if not inside and value is None else merged(tree, ("", *inside), value)
        last[one.key] = one
    if tree[""] is None:
        return None
    values = {str(name): _settled(value) for name, value in cast("dict[str, Any]", tree[""]).items()}
    try:
        return TypeAdapter(NamedResources).validate_python(values)
    except ValidationError as error:
        wrong: list[str] = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            where = (*key, *map(str, item["loc"]))
            about = [one for at, one in last.items() if where[: len(at)] == at or at[: len(where)] == where]
            source = about[-1].where(*where[len(about[-1].key) :]) if about else ""
            wrong.append(blamed(source, f"{dotted(where)}: {_message(item['msg'])}"))
        raise ConfigurationError("; ".join(wrong)) from None


def _mapping(given: Given) -> Any:
    value: Any = given.value
    if isinstance(value, Text):
        try:
            value = read_yaml(value)
        except ValueError as error:
            raise ConfigurationError(f"{given.source}: it is no YAML: {error}") from None
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(
            blamed(given.source, f"{dotted(given.key)}: {_WANTED}, not {type(value).__name__}")
        )
    return cast("Mapping[str, Any] | None", value)


def _settled(value: Any) -> Any:
    """Read the texts in a resource as the types that its kind asks for."""
    if not isinstance(value, dict):
        return value
    resource = cast("dict[str, Any]", value)
    kind = resource.get("resource_type")
    cls = resource_kinds().get(str(kind))
    fields = {} if cls is None else cls.model_fields
    return {
        name: settled(inner, fields[name].annotation if name in fields else Any)
        for name, inner in resource.items()
    }


def _message(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
