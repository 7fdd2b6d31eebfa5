"""A door to the v0.1 client, which the package ``lightning-legacy`` provides."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_legacy import AgentLightningClient as AgentLightningClient  # noqa: PLC0414 - exported
    from lightning_legacy import DevTaskLoader as DevTaskLoader  # noqa: PLC0414 - exported

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {},
    plugins={
        "AgentLightningClient": ("lightning_legacy", "lightning-legacy"),
        "DevTaskLoader": ("lightning_legacy", "lightning-legacy"),
    },
)
