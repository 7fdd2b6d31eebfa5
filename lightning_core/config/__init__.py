"""Command lines and configuration files made from constructors.

:func:`lightning_cli` builds a command line for any classes, with the names and settings of installed plugins;
``lightning-core run`` is made in the same way.
"""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .command_line import lightning_cli as lightning_cli
    from .nullable import nullable_float as nullable_float
    from .nullable import nullable_int as nullable_int
    from .nullable import nullable_str as nullable_str

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "lightning_cli": "lightning_core.config.command_line",
        "nullable_float": "lightning_core.config.nullable",
        "nullable_int": "lightning_core.config.nullable",
        "nullable_str": "lightning_core.config.nullable",
    },
)
