"""The one way from what a user writes to a component: ``resolve(kind, spec)``."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, cast, overload

from lightning_core.errors import (
    BrokenPluginError,
    InvalidSpecError,
    LightningError,
    PluginSettingsError,
)
from lightning_core.plugin.catalog import BASES, DEFAULTS
from lightning_core.plugin.component import KINDS, NAME, Component, Kind
from lightning_core.plugin.settings import bind_settings, keywords_of, validate_settings

if TYPE_CHECKING:
    from lightning_core.adapter.base import TraceAdapter
    from lightning_core.adapter.credit.base import CreditPolicy
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.engine.base import BaseEngine
    from lightning_core.execution.base import ExecutionStrategy
    from lightning_core.plugin.manager import PluginManager
    from lightning_core.runner.base import BaseRunner
    from lightning_core.store.base import LightningStore
    from lightning_core.tracer.base import BaseTracer
    from lightning_core.types import Hook

__all__ = ["default_name", "find_component", "resolve", "resolve_argument"]

_IMPORT_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")
_CREDENTIALS: Final = re.compile(r"(://)[^/@\s]*@")


@overload
def resolve(kind: Literal["tracer"], spec: Any, /, **defaults: Any) -> BaseTracer: ...
@overload
def resolve(kind: Literal["store"], spec: Any, /, **defaults: Any) -> LightningStore: ...
@overload
def resolve(kind: Literal["runner"], spec: Any, /, **defaults: Any) -> BaseRunner[Any]: ...
@overload
def resolve(kind: Literal["adapter"], spec: Any, /, **defaults: Any) -> TraceAdapter[Any] | None: ...
@overload
def resolve(kind: Literal["credit"], spec: Any, /, **defaults: Any) -> CreditPolicy: ...
@overload
def resolve(kind: Literal["algorithm"], spec: Any, /, **defaults: Any) -> BaseAlgorithm | None: ...
@overload
def resolve(kind: Literal["strategy"], spec: Any, /, **defaults: Any) -> ExecutionStrategy: ...
@overload
def resolve(kind: Literal["engine"], spec: Any, /, **defaults: Any) -> BaseEngine | None: ...
@overload
def resolve(kind: Literal["hook"], spec: Any, /, **defaults: Any) -> Hook | None: ...
@overload
def resolve(kind: Kind, spec: Any, /, **defaults: Any) -> Any: ...
def resolve(kind: Kind, spec: Any, /, **defaults: Any) -> Any:
    """Turn a specification into a component.

    Args:
        kind: What it is for.
        spec: One of

            * an instance, which is returned as it is;
            * a class or a factory, which is called; a credit may also be a function that takes a trace;
            * the name of an installed component: ``"otel"``;
            * a URL whose scheme is such a name: ``"sqlite:///runs.db"``;
            * an import path: ``"package.module:Class"`` or ``"package.module.Class"``;
            * settings with any of these as their type: ``{"type": "otel", "instrument": ["openai"]}``;
            * ``None`` for the kind's default.
        **defaults: Keywords that are passed on where the component takes them and the user has not set them.

    Returns:
        The component; ``None`` for ``None`` where the kind has no default.

    Raises:
        UnknownPluginError: If nothing installed has that name; also a ``LookupError``.
        DisabledPluginError, PluginConflictError: If it may not, or cannot unambiguously, be selected.
        BrokenPluginError, IncompatiblePluginError: If it cannot be imported; also an ``ImportError``.
        PluginSettingsError: If settings are unknown, missing or wrong; also a ``ValueError``.
        InvalidSpecError: If ``spec`` has another form, or makes no component of this kind; also a
            ``TypeError``.
    """
    return resolve_argument(kind, kind, spec, defaults)


def resolve_argument(field: str, kind: Kind, spec: Any, defaults: Mapping[str, Any] | None = None) -> Any:
    """Resolve for the argument ``field``, such as ``hooks[0]``, which begins the messages."""
    if kind not in KINDS:
        close = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the kinds are {', '.join(KINDS)}"
        raise InvalidSpecError(f"there is no kind {kind!r}; {hint}")
    return _Resolution(field, kind, defaults or {}).run(spec, {})


def default_name(kind: Kind) -> str | None:
    """The name that ``None`` selects with what is installed now, or ``None`` if it selects nothing."""
    manager = _manager()
    selectable, conflicts = manager.names(kind), manager.inventory.conflicts
    return next((name for name in DEFAULTS[kind] if name in selectable or (kind, name) in conflicts), None)


def find_component(field: str, kind: Kind, text: str) -> tuple[Component[Any], dict[str, Any]] | None:
    """Find the installed component that a name or a URL selects; its factory is not called.

    Args:
        field: Where the user wrote it, such as ``store``; begins messages.
        kind: What it is for.
        text: A name, a URL, or an import path.

    Returns:
        The component, and the settings that the URL holds; ``None`` for an import path.

    Raises:
        PluginError: If nothing installed has the name, it cannot be loaded, or the URL is wrong or not for it.
    """
    if "://" not in text:
        if NAME.fullmatch(text) is None and (":" in text or "." in text):
            return None
        return _manager().load(kind, text), {}
    component = _manager().load(kind, text.partition("://")[0].lower())
    shown = _without_credentials(text)
    if component.from_url is None:
        raise InvalidSpecError(
            f"{field}: {kind} {component.name!r} takes no URL; write {component.name!r} instead of {shown!r}"
        )
    try:
        return component, component.from_url(text)
    except LightningError:
        raise
    except ValueError as error:
        raise PluginSettingsError(f"{field}: {shown!r}: {_without_credentials(str(error))}") from None


def _manager() -> PluginManager:
    # Reading the metadata of what is installed takes imports that a program without a name to look up can
    # spare.
    from lightning_core.plugin.manager import plugin_manager

    return plugin_manager()


class _Resolution:
    """One call of ``resolve``: where the user wrote it, and what may be injected."""

    def __init__(self, field: str, kind: Kind, defaults: Mapping[str, Any]) -> None:
        self.field = field
        self.kind: Kind = kind
        self.defaults = defaults

    def run(self, spec: Any, settings: Mapping[str, Any]) -> Any:
        if spec is None:
            name = default_name(self.kind)
            if name is not None:
                return self.named(name, settings)
            if settings:
                raise InvalidSpecError(
                    f"{self.field}: there are settings, but no 'type' says of which {self.kind}"
                )
            return None
        if isinstance(spec, str):
            return self.text(spec.strip(), settings)
        if isinstance(spec, Mapping):
            return self.mapping(cast("Mapping[Any, Any]", spec), settings)
        if isinstance(spec, Component):
            return self.component(cast("Component[Any]", spec), settings)
        return self.value(spec, settings, f"the {self.kind} {_name(spec)}")

    def mapping(self, spec: Mapping[Any, Any], settings: Mapping[str, Any]) -> Any:
        for key in spec:
            if not isinstance(key, str):
                raise InvalidSpecError(
                    f"{self.field}: settings have names, and {key!r} is of type {type(key).__name__}"
                )
        own = {name: value for name, value in spec.items() if name != "type"}
        if "type" not in spec:
            raise InvalidSpecError(
                f"{self.field}: settings need a 'type' that says of which {self.kind}, such as "
                f'{{"type": "{default_name(self.kind) or "name"}", ...}}; '
                f"given: {', '.join(own) or 'nothing'}"
            )
        return self.run(spec["type"], {**own, **settings})

    def text(self, text: str, settings: Mapping[str, Any]) -> Any:
        found = find_component(self.field, self.kind, text)
        if found is None:
            return self.import_path(text, settings)
        component, read = found
        return self.component(component, {**read, **settings})

    def named(self, name: str, settings: Mapping[str, Any]) -> Any:
        return self.component(_manager().load(self.kind, name), settings)

    def import_path(self, path: str, settings: Mapping[str, Any]) -> Any:
        if _IMPORT_PATH.fullmatch(path) is None:
            raise InvalidSpecError(
                f"{self.field}: {path!r} is neither a name, nor a URL such as 'name://...', nor an import "
                "path such as 'package.module:Class'"
            )
        value = _import(self.field, path)
        if isinstance(value, Component):
            return self.component(cast("Component[Any]", value), settings)
        if inspect.ismodule(value):
            raise InvalidSpecError(
                f"{self.field}: {path!r} is a module; name the class in it: '{path}:Class'"
            )
        return self.value(value, settings, f"{self.kind} {path!r}")

    def component(self, component: Component[Any], settings: Mapping[str, Any]) -> Any:
        what = f"{self.kind} {component.name!r}"
        fields = component.config.model_fields
        injected = {
            name: value for name, value in self.defaults.items() if name in fields and name not in settings
        }
        arguments = validate_settings(component.config, {**injected, **settings}, field=self.field, what=what)
        taken = keywords_of(component.factory)
        # Parts, such as a runner's tracer, are no settings: they go to the factory as they are.
        parts = {name: value for name, value in self.defaults.items() if name in taken and name not in fields}
        arguments.update(parts)
        try:
            inspect.signature(component.factory).bind(**arguments)
        except TypeError as error:
            raise BrokenPluginError(
                f"{self.field}: the factory of {what} does not take its own settings: {error}; "
                "its authors must give it one keyword for each field of its config"
            ) from error
        return self.make(component.factory, arguments, what)

    def value(self, value: Any, settings: Mapping[str, Any], what: str) -> Any:
        """A class, a factory or an instance."""
        if not inspect.isclass(value) and self.accepts(value):
            if settings:
                raise InvalidSpecError(
                    f"{self.field}: {what} is an instance already, and takes no settings; "
                    f"given: {', '.join(settings)}"
                )
            return value
        if inspect.isclass(value):
            self.check_class(value)
        elif not callable(value):
            raise InvalidSpecError(
                f"{self.field}: a value of type {type(value).__name__} is no {self.kind}. Give "
                f"{self.wanted()}, a class or a factory of one, an installed name, a URL, an import path, "
                "or a dict with 'type' and settings"
            )
        else:
            # Some kinds are what a function can be.
            from_function = getattr(self.base(), "from_function", None)
            made = None if from_function is None else from_function(value, settings)
            if made is not None:
                return made
        taken = keywords_of(value)
        injected = {
            name: given for name, given in self.defaults.items() if name in taken and name not in settings
        }
        arguments = {**injected, **settings}
        bind_settings(value, arguments, field=self.field, what=what)
        return self.make(value, arguments, what)

    def make(self, factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
        try:
            made = factory(**arguments)
        except LightningError:
            raise
        except ImportError as error:
            raise BrokenPluginError(
                f"{self.field}: {what} cannot be made: {error}; install what it needs"
            ) from error
        if inspect.iscoroutine(made):
            made.close()
            raise InvalidSpecError(f"{self.field}: the factory of {what} is async; make it a plain function")
        if not self.accepts(made):
            raise InvalidSpecError(
                f"{self.field}: {what} made a value of type {type(made).__name__}, not {self.wanted()}"
            )
        return made

    def check_class(self, given: type[Any]) -> None:
        base = self.base()
        if base is not None and not issubclass(given, base):
            raise InvalidSpecError(
                f"{self.field}: the class {given.__qualname__} does not inherit from {base.__name__}"
            )
        if inspect.isabstract(given):
            missing = ", ".join(sorted(cast("frozenset[str]", getattr(given, "__abstractmethods__", ()))))
            raise InvalidSpecError(
                f"{self.field}: the class {given.__qualname__} is abstract; it lacks {missing}"
            )

    def accepts(self, value: Any) -> bool:
        base = self.base()
        if base is None:
            return callable(getattr(value, "start", None)) and callable(getattr(value, "stop", None))
        return isinstance(value, base)

    def base(self) -> type[Any] | None:
        path = BASES[self.kind]
        return None if path is None else getattr(import_module(path[0]), path[1])

    def wanted(self) -> str:
        path = BASES[self.kind]
        return "an object with start() and stop()" if path is None else f"an instance of {path[1]}"


def _without_credentials(text: str) -> str:
    return _CREDENTIALS.sub(r"\1***@", text)


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _import(field: str, path: str) -> Any:
    """Import ``package.module:Class``, or ``package.module.Class`` with the longest module that there is."""
    module_path, colon, attributes = path.partition(":")
    if colon:
        return _attributes(field, path, _module(field, path, module_path), attributes.split("."))
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            # Only if it is this module that is missing, not one that it imports.
            if (
                length > 1
                and error.name is not None
                and (name == error.name or name.startswith(f"{error.name}."))
            ):
                continue
            raise _not_imported(field, path, error) from error
        except Exception as error:
            raise _not_imported(field, path, error) from error
        return _attributes(field, path, module, parts[length:])
    raise AssertionError


def _module(field: str, path: str, name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:
        raise _not_imported(field, path, error) from error


def _not_imported(field: str, path: str, error: Exception) -> BrokenPluginError:
    return BrokenPluginError(
        f"{field}: {path!r} cannot be imported: {type(error).__name__}: {error}; "
        "check the spelling, and that it can be found from here"
    )


def _attributes(field: str, path: str, found: Any, names: list[str]) -> Any:
    for name in names:
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), 1)
            raise BrokenPluginError(
                f"{field}: {path!r} cannot be imported: {_name_of(found)} has no {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        found = getattr(found, name)
    return found


def _name_of(found: Any) -> str:
    return getattr(found, "__name__", type(found).__name__)
