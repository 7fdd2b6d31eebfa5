"""A durable store for lightning-core: rollouts, spans and resources in one SQLite file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import SqliteLightningStore

__all__ = ["SqliteLightningStore"]
__version__ = "1.0.0"


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must not load the store itself.
    if name == "SqliteLightningStore":
        from .store import SqliteLightningStore

        return SqliteLightningStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
