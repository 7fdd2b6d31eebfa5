"""Whatever is written wrongly, the error says what, where and what it might have been."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from lightning_core import LLM, LitAgent, PromptTemplate, Trainer, algo, prompt_rollout, resolve, rollout
from lightning_core.cli import main
from lightning_core.errors import ConfigurationError, DatasetError, InvalidSpecError
from lightning_core.runner import AgentRunnerV2
from lightning_core.store import InMemoryLightningStore
from lightning_core.tracer import DummyTracer
from lightning_core.types import Hook, ProxyLLM, Resource, RolloutConfig, RolloutV2


@rollout
def agent(task: str, llm: LLM) -> float:
    return 1.0


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"tracer": "dummy", "algorithm": "mock", **settings})


# Data that people write


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (LLM, {"endpoint": "http://host", "modle": "m"}, "LLM has no field 'modle'; did you mean 'model'?"),
        (
            ProxyLLM,
            {"endpoint": "http://host", "model": "m", "sampling_paramters": {}},
            "ProxyLLM has no field 'sampling_paramters'; did you mean 'sampling_parameters'?",
        ),
        (
            PromptTemplate,
            {"template": "x", "zzz": 1},
            "PromptTemplate has no field 'zzz'. It has ",
        ),
        (
            RolloutConfig,
            {"max_atempts": 2},
            "RolloutConfig has no field 'max_atempts'; did you mean 'max_attempts'?",
        ),
    ],
)
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(model, fields, message):
    with pytest.raises(ValidationError) as error:
        model(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize("fields", [{"modle": "m"}, {"model": 5}, {}])
def test_the_error_does_not_show_the_key_that_stands_beside(fields):
    with pytest.raises(ValidationError) as error:
        LLM(endpoint="http://host", api_key="sk-secret", **fields)
    assert "sk-secret" not in str(error.value)


def test_a_kind_of_resource_may_take_any_field():
    class Anything(Resource, extra="allow"):
        resource_type: str = "anything"

    assert Anything(more=1).model_extra == {"more": 1}  # pyright: ignore[reportCallIssue]


# Functions and classes that people write


def test_a_parameter_of_an_agent_that_nobody_gives_gets_the_nearest():
    with pytest.raises(NotImplementedError, match=r"For 'promt_template', did you mean 'prompt_template'\?"):
        rollout(lambda task, promt_template: 1.0)
    with pytest.raises(NotImplementedError, match=r"For 'resource', did you mean 'resources'\? Accepted"):
        prompt_rollout(lambda task, prompt, other, resource: 1.0)
    with pytest.raises(NotImplementedError, match=r"cannot be an agent\. Accepted"):
        rollout(lambda task, something: 1.0)


def test_a_parameter_of_an_algorithm_that_nobody_gives_gets_the_nearest():
    with pytest.raises(
        ConfigurationError, match=r"'stor'; did you mean 'store'\? An algorithm may take store"
    ):
        algo(lambda stor: None)


def test_a_method_that_is_nearly_one_of_an_agent_is_named():
    class Misspelled(LitAgent[str]):
        def trainig_rollout(self, task: str, resources: Any, rollout: Any) -> float:
            return 1.0

    live = RolloutV2(rollout_id="ro-1", input="task", start_time=0)
    with pytest.raises(
        NotImplementedError, match="it has 'trainig_rollout'; override rollout or training_rollout"
    ):
        Misspelled().rollout("task", {}, live)


# Trainer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_runners": "4"}, r"n_runners='4'\): a whole number is needed, at least 1"),
        ({"n_runners": True}, r"n_runners=True\): a whole number"),
        ({"max_rollouts": -1}, r"max_rollouts=-1\): a whole number is needed, at least 0"),
        ({"max_rollouts": 2.5}, r"max_rollouts=2\.5\): a whole number"),
        ({"hooks": 5}, r"hooks=\.\.\.\): a hook or a list of them is needed, not a int"),
    ],
)
def test_a_wrong_value_for_the_trainer_is_named_with_what_is_needed(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        trainer(**settings)


def test_a_wrong_hook_is_named_with_its_place():
    with pytest.raises(InvalidSpecError, match=r"hooks\[1\]: a value of type int is no hook"):
        trainer(hooks=[Hook(), 5])


def test_a_dict_is_no_dataset():
    with pytest.raises(DatasetError, match=r"train dataset is a dict.*list\(dataset\.values\(\)\)"):
        trainer().fit(agent, {"train": ["a"]})


# Runner and tracers


def test_a_runner_wants_a_tracer_and_not_its_name():
    with pytest.raises(ConfigurationError, match=r"not a str; resolve\('tracer', \.\.\.\) makes one"):
        AgentRunnerV2("dummy")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", ["validation", "trian", 5])
async def test_a_mode_that_does_not_exist_is_refused_before_anything_is_stored(mode):
    store = InMemoryLightningStore()
    with AgentRunnerV2(DummyTracer()).run_context(agent=agent, store=store) as runner:
        with pytest.raises(ConfigurationError, match=r"'train', 'val', 'test' or None, not "):
            await runner.step("task", mode=mode, resources={})
        assert await store.get_latest_resources() is None
    await store.close()


@pytest.mark.parametrize(
    ("name", "package"), [("otel", "lightning_tracer_otel"), ("agentops", "lightning_tracer_agentops")]
)
def test_one_name_of_a_library_is_no_list_of_letters(name, package):
    pytest.importorskip(package)
    made = type(resolve("tracer", name))
    with pytest.raises(ConfigurationError, match=rf"tracer '{name}': instrument must be .*\['openai'\]"):
        made(instrument="openai")


# Commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugin"], "No such command 'plugin'. Did you mean 'plugins'?"),
        (["doctr", "run"], "No such command 'doctr'. Did you mean 'doctor'?"),
        (["xyz"], "No such command 'xyz'."),
        (["--debg"], "--debug"),
        (["runs", "list", "--store", "sqlit:///x.db"], "unknown store 'sqlit'"),
    ],
)
def test_a_command_that_does_not_exist_gets_the_nearest(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert message in result.output
