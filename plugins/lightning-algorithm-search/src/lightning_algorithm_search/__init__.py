"""Finds the best of several prompt templates and sampling settings by successive halving."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algorithm import SearchAlgorithm
    from .candidates import Candidate
    from .intervals import Interval, mean_interval, paired_interval, t_quantile

__all__ = ["Candidate", "Interval", "SearchAlgorithm", "mean_interval", "paired_interval", "t_quantile"]
__version__ = "1.0.0"

_MODULES = {
    "Candidate": "candidates",
    "Interval": "intervals",
    "SearchAlgorithm": "algorithm",
    "mean_interval": "intervals",
    "paired_interval": "intervals",
    "t_quantile": "intervals",
}


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must not load the algorithm.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
