"""Work on its way to another process: what that could not import goes by value.

For packages that start processes; they depend on ``cloudpickle``, which the core does not.
"""

from __future__ import annotations

import logging
import multiprocessing.spawn
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_core.errors import ConfigurationError

__all__ = ["Packed", "pack", "pickle_value", "refuse_entered_script", "unpickle_value"]

logger = logging.getLogger(__name__)

_entering_script = False


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
        return _pickler().loads(self.data)


def pack(work: Any) -> Packed:
    """Pickle a bundle for a process that shares nothing with this one.

    What is defined in the user's script, in a function or in a module that cannot be imported goes by value, so the
    script need not run again. Only if it holds what cannot be pickled, such as a client at its top, does the other
    process run the script for it, and then the script needs its ``if __name__ == "__main__":``.

    Raises:
        ConfigurationError: If it cannot be pickled either way; names the argument.
    """
    try:
        data, _ = _pickler().dump(work, script_by_value=True)
        return Packed(data, {})
    except Exception as error:
        script = _script()
        if script:
            try:
                data, refers = _pickler().dump(work, script_by_value=False)
            except Exception:
                refers = False
                data = b""
            if refers:
                return Packed(data, script)
        raise _explain(work, error) from error


def pickle_value(value: Any) -> bytes | None:
    """Pickle what may be of any kind; ``None`` if that cannot be done."""
    try:
        return _pickler().dump(value, script_by_value=True)[0]
    except Exception:
        logger.debug("a %s cannot be sent to another process", type(value).__name__, exc_info=True)
        return None


def unpickle_value(data: bytes | None) -> Any:
    """Read what :func:`pickle_value` wrote; ``None`` if it cannot be read, as is true of some exceptions."""
    if data is None:
        return None
    try:
        return _pickler().loads(data)
    except Exception:
        logger.debug("what another process has sent cannot be read", exc_info=True)
        return None


def _pickler() -> Any:
    # Needs cloudpickle, and only where something is pickled.
    from lightning_core.execution import _pickler

    return _pickler


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
            _pickler().dump(part, script_by_value=True)
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
