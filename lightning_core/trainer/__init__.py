"""The trainer: puts the parts together and runs them."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .result import TrainingResult as TrainingResult
    from .trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {"Trainer": "lightning_core.trainer.trainer", "TrainingResult": "lightning_core.trainer.result"},
)
