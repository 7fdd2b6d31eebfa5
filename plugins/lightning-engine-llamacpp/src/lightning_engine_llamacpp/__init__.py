"""Serves a GGUF model with llama.cpp behind an OpenAI-compatible endpoint, for lightning-core."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import LlamaCppEngine

__all__ = ["LlamaCppEngine"]
__version__ = "1.0.0"


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must not load the engine.
    if name == "LlamaCppEngine":
        from .engine import LlamaCppEngine

        return LlamaCppEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
