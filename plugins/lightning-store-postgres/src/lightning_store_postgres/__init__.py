"""A durable store for lightning-core: rollouts, spans and resources in a PostgreSQL database."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import PostgresLightningStore

__all__ = ["PostgresLightningStore"]
__version__ = "1.0.0"


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must not load psycopg.
    if name == "PostgresLightningStore":
        from .store import PostgresLightningStore

        return PostgresLightningStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
