"""The two decorators that mark hook specifications and hook implementations."""

from __future__ import annotations

from typing import Final

import pluggy

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT: Final = "lightning_core"
"""pluggy's project name, and the entry-point group in which packages announce their components."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a hook specification; only the core has these."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin that implements one of the hooks."""
