"""Strategies: where the algorithm and the runners execute."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_store_http import ClientServerExecutionStrategy as ClientServerExecutionStrategy

    from .base import ExecutionEvent as ExecutionEvent
    from .base import ExecutionStrategy as ExecutionStrategy
    from .shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "ExecutionEvent": "lightning_core.execution.base",
        "ExecutionStrategy": "lightning_core.execution.base",
        "SharedMemoryExecutionStrategy": "lightning_core.execution.shared_memory",
    },
    plugins={"ClientServerExecutionStrategy": ("lightning_store_http", "lightning-store-http")},
)
