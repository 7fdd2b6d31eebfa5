"""A door to the v0.1 client, which the package ``lightning-legacy`` provides."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {},
    plugins={
        "AgentLightningClient": ("lightning_legacy", "lightning-legacy"),
        "DevTaskLoader": ("lightning_legacy", "lightning-legacy"),
    },
)
