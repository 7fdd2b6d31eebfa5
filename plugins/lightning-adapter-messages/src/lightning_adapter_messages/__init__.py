"""Turns the spans of an agent run into chat messages for a fine-tuning file, for lightning-core."""

from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

if TYPE_CHECKING:
    from .adapter import TraceMessagesAdapter as TraceMessagesAdapter
    from .example import ChatExample as ChatExample
    from .explanation import CallMessages as CallMessages
    from .explanation import MessagesExplanation as MessagesExplanation

_NAMES = {
    "CallMessages": "explanation",
    "ChatExample": "example",
    "MessagesExplanation": "explanation",
    "TraceMessagesAdapter": "adapter",
}

__all__ = ["CallMessages", "ChatExample", "MessagesExplanation", "TraceMessagesAdapter"]


# Listing plugins imports plugin.py, and with it this module: the rest is imported when it is used.
def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
