"""Checks the settings of a component, and words what is wrong in terms of what the user wrote."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lightning_core.errors import PluginSettingsError

__all__ = ["bind_settings", "keywords_of", "validate_settings"]


def validate_settings(
    config: type[BaseModel], settings: Mapping[str, Any], *, field: str, what: str
) -> dict[str, Any]:
    """Validate settings with a component's model, and return the values for its factory.

    Args:
        config: The model.
        settings: What the user wrote.
        field: Where the user wrote it, such as ``tracer``; begins every message.
        what: The component, such as ``tracer 'otel'``.

    Raises:
        PluginSettingsError: If a setting is unknown, missing or wrong; the message lists all of them.
    """
    known = [info.alias or name for name, info in config.model_fields.items()]
    accepted = {*known, *(config.model_fields if config.model_config.get("populate_by_name") else ())}
    unknown: list[str] = []
    if config.model_config.get("extra") != "allow":
        # Also where a model forgot to forbid them: a setting is never ignored in silence.
        unknown = [name for name in settings if name not in accepted]
    wrong = [f"{field}.{name}: {_unknown(name, known, what)}" for name in unknown]
    try:
        model = config.model_validate(
            {name: value for name, value in settings.items() if name not in unknown}
        )
    except ValidationError as error:
        # Inputs stay out of the message: they may be keys.
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            path = ".".join(str(part) for part in (field, *item["loc"]))
            wrong.append(f"{path}: {item['msg'][0].lower()}{item['msg'][1:]}")
        raise PluginSettingsError("; ".join(wrong)) from None
    if wrong:
        raise PluginSettingsError("; ".join(wrong))
    return {name: getattr(model, name) for name in config.model_fields} | (model.model_extra or {})


def bind_settings(make: Callable[..., Any], settings: Mapping[str, Any], *, field: str, what: str) -> None:
    """Check that a class or a factory takes these keywords, and all that it needs is among them.

    Raises:
        PluginSettingsError: If it does not.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return  # Written in C without a signature: the call itself will tell.
    parameters = signature.parameters.values()
    known = keywords_of(make)
    wrong: list[str] = []
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        wrong += [f"{field}.{name}: {_unknown(name, known, what)}" for name in settings if name not in known]
    for parameter in parameters:
        if parameter.default is not parameter.empty or parameter.name in settings:
            continue
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            wrong.append(f"{field}.{parameter.name}: {what} needs this setting")
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            wrong.append(f"{field}: {what} needs {parameter.name!r} by position, which a setting cannot give")
    if wrong:
        raise PluginSettingsError("; ".join(wrong))


def keywords_of(make: Callable[..., Any]) -> list[str]:
    """The names that a class or a factory takes as keywords, without ``**others``."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


def _unknown(name: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown setting; {hint}{what} takes {', '.join(known) or 'no settings'}"
