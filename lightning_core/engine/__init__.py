"""Engines: serve a model behind an OpenAI-compatible endpoint."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_engine_llamacpp import LlamaCppEngine as LlamaCppEngine

    from .base import BaseEngine as BaseEngine
    from .base import EngineCapabilities as EngineCapabilities

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {"BaseEngine": "lightning_core.engine.base", "EngineCapabilities": "lightning_core.engine.base"},
    plugins={"LlamaCppEngine": ("lightning_engine_llamacpp", "lightning-engine-llamacpp")},
)
