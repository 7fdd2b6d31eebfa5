"""Work on its way to another process: what that could not import goes by value.

For packages that start processes; they depend on ``cloudpickle``, which the core does not.
"""

from __future__ import annotations

import functools
import importlib.machinery
import io
import logging
import multiprocessing.spawn
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning_core.errors import ConfigurationError
from lightning_core.litagent import FunctionalLitAgent

__all__ = ["Packed", "pack", "pickle_value", "refuse_entered_script", "unpickle_value"]

logger = logging.getLogger(__name__)

_SCRIPT = "__main__"
# By name, since it ships no types.
_cloudpickle: Any = import_module("cloudpickle")
_CloudPickler: Any = _cloudpickle.Pickler
_entering_script = False
_Cached = type(functools.cache(int))


def refuse_entered_script() -> None:
    """Refuse to start processes in one that runs the user's script once more, for what the script defines.

    Raises:
        ConfigurationError: If this is one.
    """
    if _entering_script:
        raise ConfigurationError(
            "this script starts its run again in each of its own processes, since it has no "
            '`if __name__ == "__main__":` around that; put it there. (It would do without if what the agent uses could '
            "be sent to another process: make connections, clients and locks inside of the agent, not at the top)"
        )


@dataclass(frozen=True)
class Packed:
    """A pickle, and what has to be there before it can be read.

    Attributes:
        data: The pickle.
        script: How to run the user's script for the names that it defines, as ``multiprocessing`` says it; empty where
            the pickle holds everything.
    """

    data: bytes
    script: Mapping[str, Any]

    def unpack(self) -> Any:
        """Return what was packed."""
        global _entering_script
        if self.script:
            _entering_script = True
            try:
                multiprocessing.spawn.prepare(dict(self.script))
            finally:
                _entering_script = False
        return _cloudpickle.loads(self.data)


def pack(work: Any) -> Packed:
    """Pickle a bundle for a process that shares nothing with this one.

    What is defined in the user's script, in a function or in a module that cannot be imported goes by value, so the
    script need not run again. Only if it holds what cannot be pickled, such as a client at its top, does the other
    process run the script for it, and then the script needs its ``if __name__ == "__main__":``.

    Raises:
        ConfigurationError: If it cannot be pickled either way; names the argument.
    """
    try:
        data, _ = _dump(work, script_by_value=True)
        return Packed(data, {})
    except Exception as error:
        script = _script()
        if script:
            try:
                data, refers = _dump(work, script_by_value=False)
            except Exception:
                refers = False
                data = b""
            if refers:
                return Packed(data, script)
        raise _explain(work, error) from error


def pickle_value(value: Any) -> bytes | None:
    """Pickle what may be of any kind; ``None`` if that cannot be done."""
    try:
        return _dump(value, script_by_value=True)[0]
    except Exception:
        logger.debug("a %s cannot be sent to another process", type(value).__name__, exc_info=True)
        return None


def unpickle_value(data: bytes | None) -> Any:
    """Read what :func:`pickle_value` wrote; ``None`` if it cannot be read, as is true of some exceptions."""
    if data is None:
        return None
    try:
        return _cloudpickle.loads(data)
    except Exception:
        logger.debug("what another process has sent cannot be read", exc_info=True)
        return None


def _dump(value: Any, *, script_by_value: bool) -> tuple[bytes, bool]:
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


def _script() -> dict[str, Any]:
    """How another process runs the user's script, or nothing where there is no file of it."""
    data = multiprocessing.spawn.get_preparation_data("lightning")
    script = {name: value for name, value in data.items() if name.startswith("init_main_from_")}
    return script and {**script, "sys_argv": data["sys_argv"]}


def _explain(work: Any, error: Exception) -> ConfigurationError:
    """Find out which argument it is."""
    parts: Callable[[], dict[str, Any]] | None = getattr(work, "parts", None)
    for name, part in (parts() if parts is not None else {}).items():
        try:
            _dump(part, script_by_value=True)
        except Exception as reason:
            if name in ("the agent", "algorithm") or name.startswith("the "):
                way_out = (
                    "make what it holds, such as a connection or a lock, where it is used, or leave it out in "
                    "__getstate__"
                )
            else:
                way_out = (
                    "give it by name, as a class, or as {'type': ..., **settings}: each process makes its own"
                )
            return ConfigurationError(
                f"{name}: this {type(part).__name__} cannot be sent to another process ({_said(reason)}); {way_out}"
            )
    return ConfigurationError(
        f"the work of the other processes cannot be sent to them: {_said(error)}; use the strategy 'shared-memory'"
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
