"""Algorithms: decide what runs with which resources, and learn from it."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_algorithm_search import SearchAlgorithm as SearchAlgorithm

    from .base import BaseAlgorithm as BaseAlgorithm
    from .base import FastAlgorithm as FastAlgorithm
    from .base import Need as Need
    from .baseline import Baseline as Baseline
    from .baseline import MockAlgorithm as MockAlgorithm
    from .functional import FunctionalAlgorithm as FunctionalAlgorithm
    from .functional import algo as algo

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "BaseAlgorithm": "lightning_core.algorithm.base",
        "Baseline": "lightning_core.algorithm.baseline",
        "FastAlgorithm": "lightning_core.algorithm.base",
        "FunctionalAlgorithm": "lightning_core.algorithm.functional",
        "MockAlgorithm": "lightning_core.algorithm.baseline",
        "Need": "lightning_core.algorithm.base",
        "algo": "lightning_core.algorithm.functional",
    },
    plugins={"SearchAlgorithm": ("lightning_algorithm_search", "lightning-algorithm-search")},
)
