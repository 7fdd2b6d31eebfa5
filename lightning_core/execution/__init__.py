"""Strategies: where the algorithm and the runners execute."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "ExecutionEvent": "lightning_core.execution.base",
        "ExecutionStrategy": "lightning_core.execution.base",
        "SharedMemoryExecutionStrategy": "lightning_core.execution.shared_memory",
    },
    plugins={"ClientServerExecutionStrategy": ("lightning_store_http", "lightning-store-http")},
)
