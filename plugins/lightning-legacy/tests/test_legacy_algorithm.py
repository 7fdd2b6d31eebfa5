"""The ``legacy`` algorithm: a dataset goes through v0.1 workers, by name."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
from lightning_legacy import AgentLightningClient, LegacyAlgorithm
from lightning_legacy.plugin import LegacyConfig

from lightning_core import LLM, LitAgent, Trainer, resolve
from lightning_core.errors import ConfigurationError, PluginSettingsError


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Doubler(LitAgent[Any]):
    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        assert resources["main_llm"].model == "small"
        return 2.0 * task

    def validation_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        return -1.0


def metrics(trainer: Trainer, *datasets: Any) -> list[tuple[Any, ...]]:
    train, val = datasets
    result = trainer.fit(Doubler(), train, val_data=val)
    return [
        tuple(entry[name] for name in ("mode", "rollouts", "abandoned", "rewards", "mean_reward"))
        for entry in result.metrics
    ]


def test_datasets_go_through_v0_1_workers(port: int):
    trainer = Trainer(
        algorithm={"type": "legacy", "port": port, "poll_interval": 0.01},
        tracer="dummy",
        initial_resources={"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small")},
    )
    assert metrics(trainer, [1, 2, 3], [4]) == [("train", 3, 0, 3, 4.0), ("val", 1, 0, 1, -1.0)]
    assert metrics(trainer, None, [4, 5]) == [("val", 2, 0, 2, -1.0)]


def test_tasks_without_a_reward_are_told(port: int, caplog: pytest.LogCaptureFixture):
    trainer = Trainer(
        algorithm={"type": "legacy", "port": port, "poll_interval": 0.01},
        tracer="dummy",
        initial_resources={"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="large")},
    )
    with caplog.at_level(logging.WARNING):
        assert metrics(trainer, [1, 2], None) == [("train", 2, 0, 0, None)]
    assert "no client reported a reward" in caplog.text


async def test_without_tasks_there_is_nothing_to_do():
    with pytest.raises(ConfigurationError, match="there are no tasks"):
        await LegacyAlgorithm().run()


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("train-1", "http://train-1:8000"),
    ],
)
def test_its_client_knows_where_the_server_will_be(host: str, endpoint: str):
    client = LegacyAlgorithm(host=host, token="long enough").get_client()
    assert isinstance(client, AgentLightningClient)
    assert (client.endpoint, client.poll_interval) == (endpoint, 1.0)


def test_wrong_settings_are_found_before_anything_starts():
    with pytest.raises(ConfigurationError, match="give it a token"):
        resolve("algorithm", {"type": "legacy", "host": "0.0.0.0"})
    with pytest.raises(ConfigurationError, match="clients have to know the port"):
        LegacyAlgorithm(port=0)
    with pytest.raises(PluginSettingsError, match="max_requeues"):
        resolve("algorithm", {"type": "legacy", "max_requeues": -1})


def test_settings_and_constructor_have_the_same_defaults():
    defaults = LegacyAlgorithm.__init__.__kwdefaults__
    assert LegacyConfig().model_dump() == defaults
