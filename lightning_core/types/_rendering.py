"""Rendering of prompt templates, one function per engine; each engine is imported when it is used."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lightning_core.errors import ResourceError


def render(template: str, engine: str, values: Mapping[str, Any]) -> Any:
    """Render ``template`` with ``values``; see ``PromptTemplate.format``."""
    return _ENGINES[engine](template, values)


class _Formatter(string.Formatter):
    """``str.format`` without access to attributes of the values, which a tuned template must not have."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if "." in field_name or field_name == "" or field_name[0].isdigit():
            raise ResourceError(
                f"prompt template: placeholder {{{field_name}}} must be a plain name, or a name with [key]"
            )
        return super().get_field(field_name, args, kwargs)


_formatter = _Formatter()


def _fstring(template: str, values: Mapping[str, Any]) -> str:
    try:
        return _formatter.vformat(template, (), values)
    except KeyError as error:
        given = ", ".join(sorted(values)) or "nothing"
        raise ResourceError(
            f"prompt template: no value for {{{error.args[0]}}}; given: {given}. "
            "Double the braces to keep them as text"
        ) from error
    except (ValueError, IndexError, TypeError) as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(f"prompt template: {error}. Double the braces to keep them as text") from error


def _jinja(template: str, values: Mapping[str, Any]) -> str:
    try:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ResourceError("jinja templates need the extra: pip install 'lightning-core[jinja]'") from error
    try:
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
        return environment.from_string(template).render(**values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ResourceError(f"prompt template (jinja): {error}") from error


def _poml(template: str, values: Mapping[str, Any]) -> Any:
    try:
        # It ships no types.
        poml: Any = import_module("poml")
    except ImportError as error:
        raise ResourceError("poml templates need the extra: pip install 'lightning-core[poml]'") from error
    return poml.poml(template, dict(values))


_ENGINES: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "f-string": _fstring,
    "jinja": _jinja,
    "poml": _poml,
}
