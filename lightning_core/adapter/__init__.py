"""Adapters: turn spans into what an algorithm learns from."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_adapter_messages import TraceMessagesAdapter as TraceMessagesAdapter
    from lightning_adapter_triplet import LlmProxyTripletAdapter as LlmProxyTripletAdapter
    from lightning_adapter_triplet import RewardMatchPolicy as RewardMatchPolicy
    from lightning_adapter_triplet import TraceTree as TraceTree
    from lightning_adapter_triplet import TraceTripletAdapter as TraceTripletAdapter

    from .base import BaseAdapter as BaseAdapter
    from .base import Explanation as Explanation
    from .base import TraceAdapter as TraceAdapter
    from .credit.base import CreditPolicy as CreditPolicy
    from .trajectory import Trajectory as Trajectory
    from .trajectory import TrajectoryAdapter as TrajectoryAdapter
    from .trajectory import TrajectoryExplanation as TrajectoryExplanation
    from .trajectory import TrajectoryTurn as TrajectoryTurn
    from .trajectory import Turn as Turn
    from .trajectory import merge_turns as merge_turns

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
