from typing import ClassVar

import pytest
from lightning_hook_spending.hook import Spending

from lightning_core.errors import VetoRollout
from lightning_core.testing import HookConformance, PluginPackageConformance
from lightning_core.types import Span


class TestSpending(HookConformance):
    @pytest.fixture
    def make_hook(self):
        return lambda: Spending(limit=1.0, input_price=1.0, output_price=1.0)


class TestPackage(PluginPackageConformance):
    distribution = "lightning-hook-spending"
    settings: ClassVar = {"hook.spending": {"limit": 1.0, "input_price": 0.5, "output_price": 2.0}}


async def test_it_stops_when_the_limit_is_reached():
    hook = Spending(limit=3.0, input_price=1.0, output_price=2.0)
    usage = {"gen_ai.usage.input_tokens": 1_000_000, "gen_ai.usage.output_tokens": 500_000}
    for _ in range(2):
        await hook.on_rollout_start()
        await hook.on_rollout_end(spans=[Span.from_attributes(attributes=usage)])
    assert hook.spent == 4.0
    with pytest.raises(VetoRollout, match=r"4\.00 of 3\.00 is spent"):
        await hook.on_rollout_start()
