"""Names that are imported when they are first used (PEP 562), also those that a plugin provides."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["lazy_module"]


def lazy_module(
    module: str, names: Mapping[str, str], *, plugins: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` for a module.

    Args:
        module: Name of the module that they are for.
        names: Public name to the module that defines it.
        plugins: Public name to the import name and the distribution of the plugin that provides it.
    """
    provided = plugins or {}

    def __getattr__(name: str) -> Any:
        if name in names:
            value = getattr(import_module(names[name]), name)
        elif name in provided:
            package, distribution = provided[name]
            try:
                value = getattr(import_module(package), name)
            except ModuleNotFoundError as error:
                if error.name != package:
                    raise
                raise ImportError(
                    f"{module}.{name} is provided by a plugin that is not installed. "
                    f"To get it: pip install {distribution}",
                    name=name,
                ) from None
        else:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        setattr(sys.modules[module], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[module]), *names, *provided})

    return __getattr__, __dir__, [*names, *provided]
