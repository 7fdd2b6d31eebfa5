"""Adapters: turn spans into what an algorithm learns from."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "BaseAdapter": "lightning_core.adapter.base",
        "CreditPolicy": "lightning_core.adapter.credit.base",
        "Explanation": "lightning_core.adapter.base",
        "TraceAdapter": "lightning_core.adapter.base",
        "Trajectory": "lightning_core.adapter.trajectory",
        "TrajectoryAdapter": "lightning_core.adapter.trajectory",
        "TrajectoryExplanation": "lightning_core.adapter.trajectory",
        "TrajectoryTurn": "lightning_core.adapter.trajectory",
        "Turn": "lightning_core.adapter.trajectory",
        "merge_turns": "lightning_core.adapter.trajectory",
    },
    plugins={
        "TraceTripletAdapter": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
        "LlmProxyTripletAdapter": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
        "TraceMessagesAdapter": ("lightning_adapter_messages", "lightning-adapter-messages"),
        "TraceTree": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
        "RewardMatchPolicy": ("lightning_adapter_triplet", "lightning-adapter-triplet"),
    },
)
