"""Shows what the library logs: ``configure_logger``. The library itself never configures logging."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from lightning_core.errors import ConfigurationError

__all__ = ["configure_logger", "configured_level"]

CORE = "lightning_core"
FORMAT = "%(asctime)s [%(levelname)s] (Process-%(process)d %(name)s)   %(message)s"


class _Handler(logging.StreamHandler[Any]):
    """The handler that :func:`configure_logger` sets, and by which it knows its own again."""


def configure_logger(level: int | str = logging.INFO, name: str = CORE) -> logging.Logger:
    """Have a logger write to the standard error stream, with the time, level, process and name.

    It gets one handler of this kind, however often this is called; handlers that others have set stay. What is logged
    is not passed on to the loggers above, so that nothing is shown twice. It holds for this process and those that the
    strategy ``client-server`` starts.

    Args:
        level: The lowest level to show, such as ``logging.DEBUG`` or ``"DEBUG"``.
        name: The logger. That of the core, the default, stands for those of this project's plugins too, whose loggers
            are named after their packages, such as ``lightning_store_http``.

    Returns:
        The logger called ``name``.

    Raises:
        ConfigurationError: If there is no such level.
    """
    number = _level_number(level)
    handler = _Handler()
    handler.setFormatter(logging.Formatter(FORMAT))
    for each in [name, *(_plugin_loggers() if name == CORE else ())]:
        logger = logging.getLogger(each)
        for ours in [present for present in logger.handlers if isinstance(present, _Handler)]:
            logger.removeHandler(ours)
        logger.addHandler(handler)
        logger.setLevel(number)
        logger.propagate = False
    return logging.getLogger(name)


def configured_level() -> int | None:
    """Return the level that :func:`configure_logger` has set for the core, or ``None`` if it was not called."""
    logger = logging.getLogger(CORE)
    return logger.level if any(isinstance(each, _Handler) for each in logger.handlers) else None


def _plugin_loggers() -> list[str]:
    from lightning_core.plugin.catalog import FIRST_PARTY

    distributions = {distribution for names in FIRST_PARTY.values() for distribution in names.values()}
    return sorted(distribution.replace("-", "_") for distribution in distributions)


def _level_number(level: int | str) -> int:
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    known = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() in known:
        return known[level.upper()]
    near = difflib.get_close_matches(str(level).upper(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"configure_logger(level={level!r}): there is no such level; {hint}There are: {', '.join(known)}, and numbers"
    )
