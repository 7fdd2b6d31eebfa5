"""A door to the v0.1 server, which the package ``lightning-legacy`` provides."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {},
    plugins={
        "AgentLightningServer": ("lightning_legacy", "lightning-legacy"),
        "ServerDataStore": ("lightning_legacy", "lightning-legacy"),
    },
)
