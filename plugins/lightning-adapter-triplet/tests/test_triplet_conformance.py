"""The adapter and its package against the conformance suites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from lightning_adapter_triplet import RewardMatchPolicy, TraceTripletAdapter

from lightning_core import resolve
from lightning_core.errors import PluginSettingsError
from lightning_core.testing import AdapterConformance, PluginPackageConformance
from lightning_core.types import Span


class TestFirstOccurrence(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceTripletAdapter:
        return TraceTripletAdapter()


class TestFirstSibling(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceTripletAdapter:
        return TraceTripletAdapter(reward_match=RewardMatchPolicy.FIRST_SIBLING)

    def test_each_reward_lands_on_its_call(self, adapter: TraceTripletAdapter, trace: list[Span]) -> None:
        assert [triplet.reward for triplet in adapter.adapt(trace)] == [1.0, 0.0]


class TestEverySettingGiven(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceTripletAdapter:
        return TraceTripletAdapter(
            llm_call_match="^chat ", exclude_llm_call_in_reward=False, repair_hierarchy=False
        )


class TestPackage(PluginPackageConformance):
    distribution = "lightning-adapter-triplet"


def test_settings_reach_the_adapter() -> None:
    adapter = resolve(
        "adapter",
        {
            "type": "triplet",
            "agent_match": "solver",
            "llm_call_match": "chat",
            "exclude_llm_call_in_reward": False,
            "repair_hierarchy": False,
            "reward_match": "first_sibling",
        },
    )
    assert isinstance(adapter, TraceTripletAdapter)
    assert (adapter.agent_match, adapter.llm_call_match) == ("solver", "chat")
    assert (adapter.exclude_llm_call_in_reward, adapter.repair_hierarchy) == (False, False)
    assert adapter.reward_match is RewardMatchPolicy.FIRST_SIBLING


def test_reward_match_may_be_the_enum() -> None:
    adapter = resolve("adapter", {"type": "triplet", "reward_match": RewardMatchPolicy.FIRST_SIBLING})
    assert adapter.reward_match is RewardMatchPolicy.FIRST_SIBLING


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent_match": "("}, r"adapter\.agent_match: .*no regular expression"),
        ({"reward_match": "last"}, r"adapter\.reward_match: .*first_sibling"),
    ],
)
def test_wrong_settings_name_the_field(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        resolve("adapter", {"type": "triplet", **settings})


@pytest.mark.parametrize(
    "settings", [{"agent_match": "("}, {"llm_call_match": "["}, {"reward_match": "last"}]
)
def test_the_class_itself_refuses_wrong_settings(settings: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TraceTripletAdapter(**settings)


def test_the_reference_names_lead_here() -> None:
    import lightning_core.adapter as core

    assert core.TraceTripletAdapter is TraceTripletAdapter
    assert core.RewardMatchPolicy is RewardMatchPolicy
