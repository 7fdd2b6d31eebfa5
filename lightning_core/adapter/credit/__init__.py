"""Credit assignment: how the rewards of an attempt become the reward of each of its LLM calls."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .base import CallCredit as CallCredit
    from .base import Credit as Credit
    from .base import CreditCall as CreditCall
    from .base import CreditPolicy as CreditPolicy
    from .base import CreditReward as CreditReward
    from .base import CreditTrace as CreditTrace
    from .base import FunctionCredit as FunctionCredit
    from .base import RewardCredit as RewardCredit
    from .policies import DiscountedCredit as DiscountedCredit
    from .policies import FinalCredit as FinalCredit
    from .policies import FirstOccurrenceCredit as FirstOccurrenceCredit
    from .policies import FirstSiblingCredit as FirstSiblingCredit
    from .policies import GroupRelativeCredit as GroupRelativeCredit
    from .reading import AttemptReading as AttemptReading
    from .reading import read_attempt as read_attempt

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "AttemptReading": "lightning_core.adapter.credit.reading",
        "CallCredit": "lightning_core.adapter.credit.base",
        "Credit": "lightning_core.adapter.credit.base",
        "CreditCall": "lightning_core.adapter.credit.base",
        "CreditPolicy": "lightning_core.adapter.credit.base",
        "CreditReward": "lightning_core.adapter.credit.base",
        "CreditTrace": "lightning_core.adapter.credit.base",
        "DiscountedCredit": "lightning_core.adapter.credit.policies",
        "FinalCredit": "lightning_core.adapter.credit.policies",
        "FirstOccurrenceCredit": "lightning_core.adapter.credit.policies",
        "FirstSiblingCredit": "lightning_core.adapter.credit.policies",
        "FunctionCredit": "lightning_core.adapter.credit.base",
        "GroupRelativeCredit": "lightning_core.adapter.credit.policies",
        "RewardCredit": "lightning_core.adapter.credit.base",
        "read_attempt": "lightning_core.adapter.credit.reading",
    },
)
