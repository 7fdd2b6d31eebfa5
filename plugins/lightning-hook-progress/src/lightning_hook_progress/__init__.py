"""Shows how a run is going: a bar on a terminal, quiet lines elsewhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hook import ProgressHook
    from .tally import Mean, Tally

__all__ = ["Mean", "ProgressHook", "Tally"]
__version__ = "1.0.0"

_MODULES = {"Mean": "tally", "ProgressHook": "hook", "Tally": "tally"}


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must not load rich.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
