"""The pickler of :mod:`lightning_core.execution.pickling`, made of cloudpickle's."""

from __future__ import annotations

import functools
import importlib.machinery
import io
import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_core.litagent import FunctionalLitAgent

__all__ = ["dump", "loads"]

_SCRIPT = "__main__"
# By name, since it ships no types.
_cloudpickle: Any = import_module("cloudpickle")
_CloudPickler: Any = _cloudpickle.Pickler
_Cached = type(functools.cache(int))


def loads(data: bytes) -> Any:
    """Read a pickle."""
    return _cloudpickle.loads(data)


def dump(value: Any, *, script_by_value: bool) -> tuple[bytes, bool]:
    """Return the pickle, and whether it refers to names of the script."""
    file = io.BytesIO()
    pickler = _Pickler(file, script_by_value)
    try:
        pickler.dump(value)
    finally:
        pickler.forget()
    return file.getvalue(), pickler.refers_to_script


class _Pickler(_CloudPickler):
    """cloudpickle's, which goes by reference to what the other process can import, wrapped functions among it."""

    def __init__(self, file: io.BytesIO, script_by_value: bool) -> None:
        _CloudPickler.__init__(self, file)
        self._script_by_value = script_by_value
        self._by_value: list[types.ModuleType] = []
        self._importable: set[str] = set()
        self.refers_to_script = False

    def forget(self) -> None:
        """Take back what cloudpickle was told."""
        for module in self._by_value:
            _cloudpickle.unregister_pickle_by_value(module)

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is pickled; called by pickle."""
        if isinstance(obj, FunctionalLitAgent):
            if self._within_reach(obj) and _lookup(obj) is obj:
                return self._reference(obj)
            return obj.by_value()
        if isinstance(obj, type | types.FunctionType) and self._within_reach(obj):
            found = _lookup(obj)
            if found is obj:
                return self._reference(obj)
            if isinstance(obj, types.FunctionType) and getattr(found, "__wrapped__", None) is obj:
                self._reference(obj)
                return _wrapped, (obj.__module__, obj.__qualname__)
        if isinstance(obj, _Cached):
            if self._within_reach(obj) and _lookup(obj) is obj:
                return self._reference(obj)
            return _cache_again, (obj.__wrapped__, obj.cache_parameters())
        return _CloudPickler.reducer_override(self, obj)

    def _reference(self, obj: Any) -> Any:
        if obj.__module__ != _SCRIPT:
            return NotImplemented
        self.refers_to_script = True
        return obj.__qualname__

    def _within_reach(self, obj: Any) -> bool:
        """Whether the other process has the module that defines this."""
        name = getattr(obj, "__module__", None)
        if name == _SCRIPT:
            return not self._script_by_value
        module = sys.modules.get(name or "")
        if module is None:
            return False
        if module.__name__ in self._importable:
            return True
        if module in self._by_value:
            return False
        if _importable(module):
            self._importable.add(module.__name__)
            return True
        _cloudpickle.register_pickle_by_value(module)
        self._by_value.append(module)
        return False


def _lookup(obj: Any) -> Any:
    """What is found under the name of ``obj``."""
    found: Any = sys.modules.get(obj.__module__)
    for part in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found


def _wrapped(module: str, name: str) -> Any:
    """The function inside of the object that a decorator has put in its place."""
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found.__wrapped__


def _cache_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """A function under ``functools.lru_cache``, with an empty cache."""
    return functools.lru_cache(**parameters)(function)


def _importable(module: types.ModuleType) -> bool:
    """Whether a process with the same ``sys.path`` finds this module under its name."""
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    spec: importlib.machinery.ModuleSpec | None = None
    path: Any = None
    name = ""
    for part in module.__name__.split("."):
        name = f"{name}.{part}" if name else part
        spec = _find(name, path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None and spec.origin in (file, None)


def _find(name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    # Not importlib.util.find_spec: it believes sys.modules, where modules may be that no search finds.
    for finder in sys.meta_path:
        find: Callable[..., Any] | None = getattr(finder, "find_spec", None)
        spec = find(name, path) if find is not None else None
        if spec is not None:
            return spec
    return None
