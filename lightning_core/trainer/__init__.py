"""The trainer: puts the parts together and runs them."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .check.report import CheckPoint as CheckPoint
    from .check.report import CheckReport as CheckReport
    from .result import TrainingResult as TrainingResult
    from .trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "CheckPoint": "lightning_core.trainer.check.report",
        "CheckReport": "lightning_core.trainer.check.report",
        "Trainer": "lightning_core.trainer.trainer",
        "TrainingResult": "lightning_core.trainer.result",
    },
)
