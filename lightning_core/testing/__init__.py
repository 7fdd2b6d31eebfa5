"""Conformance suites: a plugin's tests inherit a class, say what to test, and have the contract checked.

They need pytest. The names are imported when they are first used.
"""

import sys
from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .adapter import AdapterConformance as AdapterConformance
    from .credit import CreditConformance as CreditConformance
    from .hook import HookConformance as HookConformance
    from .plugin import PluginPackageConformance as PluginPackageConformance
    from .runner import RunnerConformance as RunnerConformance
    from .store import StoreConformance as StoreConformance
    from .strategy import StrategyConformance as StrategyConformance
    from .tracer import TracerConformance as TracerConformance

_SUITES = {
    "AdapterConformance": "lightning_core.testing.adapter",
    "CreditConformance": "lightning_core.testing.credit",
    "HookConformance": "lightning_core.testing.hook",
    "PluginPackageConformance": "lightning_core.testing.plugin",
    "RunnerConformance": "lightning_core.testing.runner",
    "StoreConformance": "lightning_core.testing.store",
    "StrategyConformance": "lightning_core.testing.strategy",
    "TracerConformance": "lightning_core.testing.tracer",
}

if "pytest" in sys.modules:
    # So that a failed assertion of a suite shows the values.
    sys.modules["pytest"].register_assert_rewrite(*_SUITES.values())

__getattr__, __dir__, __all__ = lazy_module(__name__, _SUITES)
