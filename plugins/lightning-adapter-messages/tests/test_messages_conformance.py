"""The adapter and its package against the conformance suites."""

from __future__ import annotations

from typing import Any

import pytest
from lightning_adapter_messages import TraceMessagesAdapter

from lightning_core import resolve
from lightning_core.errors import PluginSettingsError
from lightning_core.testing import AdapterConformance, PluginPackageConformance


class TestPerCall(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceMessagesAdapter:
        return TraceMessagesAdapter()


class TestPerConversation(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceMessagesAdapter:
        return TraceMessagesAdapter(
            llm_call_match="^chat ",
            exclude_llm_call_in_reward=False,
            repair_hierarchy=False,
            per="conversation",
            keep_reasoning=True,
        )


class TestPackage(PluginPackageConformance):
    distribution = "lightning-adapter-messages"


def test_settings_reach_the_adapter() -> None:
    adapter = resolve(
        "adapter",
        {
            "type": "messages",
            "agent_match": "solver",
            "llm_call_match": "chat",
            "exclude_llm_call_in_reward": False,
            "repair_hierarchy": False,
            "per": "conversation",
            "keep_reasoning": True,
        },
    )
    assert isinstance(adapter, TraceMessagesAdapter)
    assert (adapter.agent_match, adapter.llm_call_match) == ("solver", "chat")
    assert (adapter.exclude_llm_call_in_reward, adapter.repair_hierarchy) == (False, False)
    assert (adapter.per, adapter.keep_reasoning) == ("conversation", True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent_match": "("}, r"adapter\.agent_match: .*no regular expression"),
        ({"per": "turn"}, r"adapter\.per: .*'call' or 'conversation'"),
    ],
)
def test_wrong_settings_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        resolve("adapter", {"type": "messages", **settings})
    with pytest.raises(ValueError, match=next(iter(settings))):
        TraceMessagesAdapter(**settings)


def test_the_reference_name_leads_here() -> None:
    import lightning_core.adapter as core

    assert core.TraceMessagesAdapter is TraceMessagesAdapter
