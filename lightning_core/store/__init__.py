"""Stores: where algorithms and runners meet."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_store_http import LightningStoreClient as LightningStoreClient
    from lightning_store_http import LightningStoreServer as LightningStoreServer
    from lightning_store_postgres import PostgresLightningStore as PostgresLightningStore
    from lightning_store_sqlite import SqliteLightningStore as SqliteLightningStore

    from .base import UNSET as UNSET
    from .base import EnqueueRequest as EnqueueRequest
    from .base import LightningStore as LightningStore
    from .base import StoreCapabilities as StoreCapabilities
    from .base import StoreStatistics as StoreStatistics
    from .memory import InMemoryLightningStore as InMemoryLightningStore
    from .otlp import OtlpEndpoint as OtlpEndpoint

_BASE = "lightning_core.store.base"

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "UNSET": _BASE,
        "EnqueueRequest": _BASE,
        "LightningStore": _BASE,
        "OtlpEndpoint": "lightning_core.store.otlp",
        "StoreCapabilities": _BASE,
        "StoreStatistics": _BASE,
        "InMemoryLightningStore": "lightning_core.store.memory",
    },
    plugins={
        "SqliteLightningStore": ("lightning_store_sqlite", "lightning-store-sqlite"),
        "PostgresLightningStore": ("lightning_store_postgres", "lightning-store-postgres"),
        "LightningStoreServer": ("lightning_store_http", "lightning-store-http"),
        "LightningStoreClient": ("lightning_store_http", "lightning-store-http"),
    },
)
