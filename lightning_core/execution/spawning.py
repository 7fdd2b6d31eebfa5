"""How a process that is started with ``spawn`` becomes like its parent, and what it must not do."""

from __future__ import annotations

import contextlib
import logging
import sys
import types
from collections.abc import Generator
from dataclasses import dataclass

from lightning_core.logging import configure_logger, configured_level

__all__ = ["LogSettings", "script_left_alone"]


@dataclass(frozen=True)
class LogSettings:
    """The logging of the parent, as far as another process can have it."""

    level: int | None = None
    format: str | None = None
    shown: int | None = None

    @classmethod
    def of_this_process(cls) -> LogSettings:
        """Read them from the root logger, and from what ``configure_logger`` has set."""
        root, shown = logging.getLogger(), configured_level()
        if not root.handlers:
            return cls(shown=shown)
        formats = (getattr(handler.formatter, "_fmt", None) for handler in root.handlers)
        return cls(root.level, next((text for text in formats if text), None), shown)

    def apply(self) -> None:
        """Set them up, where this process has no logging yet."""
        if self.level is not None:
            logging.basicConfig(level=self.level, format=self.format or logging.BASIC_FORMAT)
        if self.shown is not None:
            configure_logger(self.shown)


@contextlib.contextmanager
def script_left_alone() -> Generator[None]:
    """Keep multiprocessing from running the user's script again in the new process.

    It would do so to find what the script defines, even if nothing of that is needed. Here it goes by value, or the
    other process runs the script when it is asked to (see ``pickling``). A script without its guard would start new
    processes without end.
    """
    script = sys.modules["__main__"]
    # Another thread may pickle meanwhile what the script defines.
    stand_in = types.ModuleType("__main__")
    vars(stand_in).update(
        {name: value for name, value in dict(vars(script)).items() if name not in ("__file__", "__spec__")}
    )
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = script
