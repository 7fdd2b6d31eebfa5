"""What a rollout gives to train on: the check of one before a run, and the look of ``fit`` at its first ones."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .evidence import Evidence as Evidence
    from .first_look import FirstLook as FirstLook
    from .report import CheckPoint as CheckPoint
    from .report import CheckReport as CheckReport
    from .trial import run_check as run_check

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "CheckPoint": "lightning_core.trainer.check.report",
        "CheckReport": "lightning_core.trainer.check.report",
        "Evidence": "lightning_core.trainer.check.evidence",
        "FirstLook": "lightning_core.trainer.check.first_look",
        "run_check": "lightning_core.trainer.check.trial",
    },
)
