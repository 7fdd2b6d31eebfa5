"""Stores: where algorithms and runners meet."""

from lightning_core._lazy import lazy_module

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
