"""Lifecycle hooks: checks their overrides when they are registered, and puts them in order with pluggy."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import pluggy

from lightning_core.errors import InvalidHookError
from lightning_core.plugin.hookspecs import LightningSpecs
from lightning_core.plugin.markers import PROJECT
from lightning_core.types import Hook

__all__ = ["EVENTS", "HookCall", "LifecycleHooks", "collect_hooks"]

EVENTS: Final = ("on_rollout_start", "on_trace_start", "on_trace_end", "on_rollout_end")
"""The events of a rollout's life, in order."""

HookCall: TypeAlias = tuple[Hook, Callable[..., Awaitable[None]]]
"""A hook and its method for one event, to be awaited with all of the event's keywords."""


@dataclass(frozen=True)
class LifecycleHooks:
    """The methods to await at each event, in order. A hook is listed only where it overrides the event."""

    on_rollout_start: tuple[HookCall, ...] = ()
    on_trace_start: tuple[HookCall, ...] = ()
    on_trace_end: tuple[HookCall, ...] = ()
    on_rollout_end: tuple[HookCall, ...] = ()


def collect_hooks(hooks: Iterable[object]) -> LifecycleHooks:
    """Check hooks and put them in the order in which the runner awaits them.

    Methods marked ``@hookimpl(tryfirst=True)`` come first and ``trylast=True`` last; the others, and those
    that are marked alike, come in the order of ``hooks``, for all four events.

    Raises:
        InvalidHookError: If an override is not ``async def``, or does not take the event's keywords; if an
            object is no ``Hook``, or is given twice.
    """
    manager = _OverrideManager(PROJECT)
    ordered: list[Hook] = []
    for index, hook in enumerate(hooks):
        if not isinstance(hook, Hook):
            raise InvalidHookError(
                f"hooks[{index}] is of type {type(hook).__name__}, which does not inherit from Hook; "
                "use `class MyHook(Hook)` of lightning_core, or select an installed hook by name"
            )
        if any(hook is other for other in ordered):
            raise InvalidHookError(
                f"hooks[{index}], a {type(hook).__name__}, is in the list twice; give each hook once"
            )
        ordered.append(hook)
        _refuse_misspelled_events(hook)
        manager.register(_Overrides(hook, index), name=f"hooks[{index}]")
    return LifecycleHooks(**{event: _calls(manager, event) for event in EVENTS})


class _Overrides:
    """What pluggy is given in place of a hook, whose every attribute it would look at, and compare with ``==``.

    It has a method for each event that the hook overrides.
    """

    def __init__(self, hook: Hook, index: int) -> None:
        self.hook = hook
        self.index = index
        for event in EVENTS:
            override = _override(hook, event)
            if override is not None:
                setattr(self, event, _Override(*override).call)


@dataclass(frozen=True)
class _Override:
    """One overridden event; ``marks`` are the options of ``@hookimpl``, if it has them."""

    method: Callable[..., Awaitable[None]]
    marks: Mapping[str, Any]

    async def call(self, **keywords: Any) -> None:
        await self.method(**keywords)


class _OverrideManager(pluggy.PluginManager):
    """Takes every override of an event as a hook implementation, decorated or not."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if name not in EVENTS:
            return None
        marks = getattr(plugin, name).__self__.marks
        return {
            "wrapper": False,
            "hookwrapper": False,
            "optionalhook": False,
            "tryfirst": marks.get("tryfirst", False),
            "trylast": marks.get("trylast", False),
            "specname": None,
        }


def _calls(manager: pluggy.PluginManager, event: str) -> tuple[HookCall, ...]:
    caller: pluggy.HookCaller | None = getattr(manager.hook, event, None)
    if caller is None:
        return ()
    # pluggy itself calls those registered last first, which is not what the reader of a list expects.
    found = [
        (impl.trylast - impl.tryfirst, cast("_Overrides", impl.plugin), impl.function)
        for impl in caller.get_hookimpls()
    ]
    found.sort(key=lambda item: (item[0], item[1].index))
    return tuple(
        (overrides.hook, _accepting(cast("Any", function).__self__.method, event))
        for _, overrides, function in found
    )


def _keywords(event: str) -> list[str]:
    return [name for name in inspect.signature(getattr(LightningSpecs, event)).parameters if name != "self"]


def _accepting(method: Callable[..., Any], event: str) -> Callable[..., Awaitable[None]]:
    """Return the method, wrapped where it leaves out some of the event's keywords."""
    parameters = inspect.signature(method).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return method
    if all(name in parameters for name in _keywords(event)):
        return method

    async def call(**keywords: Any) -> None:
        await method(**{name: value for name, value in keywords.items() if name in parameters})

    return call


def _override(hook: Hook, event: str) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The checked override and its marks, or ``None`` where the event is left alone."""
    method = getattr(hook, event)
    if getattr(method, "__func__", method) is getattr(Hook, event):
        return None
    where = f"{type(hook).__name__}.{event}"
    if not inspect.iscoroutinefunction(method):
        raise InvalidHookError(
            f"{where} is not async, and would block every rollout; write `async def {event}`"
        )
    mark: object = getattr(method, f"{PROJECT}_impl", None)
    # A mock has every attribute that it is asked for.
    marks = cast("dict[str, Any]", mark) if isinstance(mark, dict) else {}
    if marks.get("wrapper") or marks.get("hookwrapper") or marks.get("specname"):
        raise InvalidHookError(
            f"{where}: of hookimpl's options, lifecycle hooks take tryfirst and trylast only"
        )
    known = _keywords(event)
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidHookError(f"{where} takes {name!r} by position; events are passed by keyword")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise InvalidHookError(
                f"{where} takes {name!r}, which the event does not pass"
                + (f"; did you mean {close[0]!r}?" if close else ".")
                + f" It passes: {', '.join(known)}"
            )
    return method, marks


def _refuse_misspelled_events(hook: Hook) -> None:
    """Refuse a method that would never be called, though its name or its mark says that it should."""
    for name in dir(type(hook)):
        if name in EVENTS or name.startswith("__"):
            continue
        method = inspect.getattr_static(type(hook), name)
        marked = getattr(method, f"{PROJECT}_impl", None) is not None
        close = difflib.get_close_matches(name, EVENTS, 1, cutoff=0.6 if marked else 0.85)
        if marked or (close and inspect.iscoroutinefunction(method)):
            raise InvalidHookError(
                f"{type(hook).__name__}.{name} is no lifecycle event"
                + (f"; did you mean {close[0]!r}?" if close else f". The events are {', '.join(EVENTS)}")
            )
