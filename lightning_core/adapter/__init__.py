"""Adapters: turn spans into what an algorithm learns from."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "BaseAdapter": "lightning_core.adapter.base",
        "Explanation": "lightning_core.adapter.base",
        "TraceAdapter": "lightning_core.adapter.base",
    },
    plugins={
        "TraceTripletAdapter": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
        "TraceTree": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
        "RewardMatchPolicy": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
    },
)
