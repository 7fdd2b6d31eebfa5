"""A door to the v0.1 server, which the package ``lightning-legacy`` provides."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_legacy import AgentLightningServer as AgentLightningServer  # noqa: PLC0414 - exported
    from lightning_legacy import ServerDataStore as ServerDataStore  # noqa: PLC0414 - exported

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {},
    plugins={
        "AgentLightningServer": ("lightning_legacy", "lightning-legacy"),
        "ServerDataStore": ("lightning_legacy", "lightning-legacy"),
    },
)
