"""Turns the spans of an agent run into (prompt, response, reward) triplets for lightning-core."""

from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

if TYPE_CHECKING:
    from .adapter import TraceTripletAdapter as TraceTripletAdapter
    from .calls import CallAdapter as CallAdapter
    from .calls import CallFinder as CallFinder
    from .calls import TraceCalls as TraceCalls
    from .duplicates import RecordedCall as RecordedCall
    from .explanation import CallExplanation as CallExplanation
    from .explanation import RewardExplanation as RewardExplanation
    from .explanation import TripletExplanation as TripletExplanation
    from .policy import RewardMatchPolicy as RewardMatchPolicy
    from .proxy import LlmProxyTripletAdapter as LlmProxyTripletAdapter
    from .tree import TraceNode as TraceNode
    from .tree import TraceTree as TraceTree

_NAMES = {
    "CallAdapter": "calls",
    "CallExplanation": "explanation",
    "CallFinder": "calls",
    "LlmProxyTripletAdapter": "proxy",
    "RecordedCall": "duplicates",
    "RewardExplanation": "explanation",
    "RewardMatchPolicy": "policy",
    "TraceCalls": "calls",
    "TraceNode": "tree",
    "TraceTree": "tree",
    "TraceTripletAdapter": "adapter",
    "TripletExplanation": "explanation",
}

__all__ = [
    "CallAdapter",
    "CallExplanation",
    "CallFinder",
    "LlmProxyTripletAdapter",
    "RecordedCall",
    "RewardExplanation",
    "RewardMatchPolicy",
    "TraceCalls",
    "TraceNode",
    "TraceTree",
    "TraceTripletAdapter",
    "TripletExplanation",
]


# Listing plugins imports plugin.py, and with it this module: the rest is imported when it is used.
def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
