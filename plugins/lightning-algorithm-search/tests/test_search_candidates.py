"""Candidates and the resources that they make."""

from typing import Any

import pytest
from lightning_algorithm_search.candidates import make_candidates

from lightning_core.errors import ConfigurationError
from lightning_core.types import LLM, NamedResources, PromptTemplate, ProxyLLM

MODEL = LLM(endpoint="http://host/v1", model="m", sampling_parameters={"max_tokens": 8, "temperature": 1.0})
INITIAL: NamedResources = {"llm": MODEL, "system": PromptTemplate(template="old {q}")}


def make(initial: NamedResources = INITIAL, **settings: Any):
    defaults = dict.fromkeys(("templates", "sampling", "temperatures", "prompt", "llm"))
    return make_candidates(initial, **{**defaults, **settings})


def test_every_template_meets_every_sampling_setting():
    candidates = make(
        templates={"a": "{q}", "b": PromptTemplate(template="{{q}}", engine="jinja")}, temperatures=[0, 0.5]
    )
    assert [each.name for each in candidates] == [
        "a, temperature=0",
        "a, temperature=0.5",
        "b, temperature=0",
        "b, temperature=0.5",
    ]
    last = candidates[-1].resources
    assert last["system"] == PromptTemplate(template="{{q}}", engine="jinja")
    assert isinstance(last["llm"], LLM)
    assert last["llm"].sampling_parameters == {"max_tokens": 8, "temperature": 0.5}
    assert MODEL.sampling_parameters["temperature"] == 1.0
    assert list(last) == ["llm", "system"]


def test_templates_alone_leave_the_model_alone_and_need_none():
    candidates = make(templates=["x", "y"], initial={})
    assert [each.name for each in candidates] == ["prompt 1", "prompt 2"]
    assert candidates[0].resources == {"prompt_template": PromptTemplate(template="x")}
    assert make(templates=["x", "y"])[0].resources["llm"] is MODEL


def test_sampling_alone_leaves_the_template_alone():
    candidates = make(sampling=[{}, {"top_p": 0.5, "temperature": 0}])
    assert [each.name for each in candidates] == ["as it is", "top_p=0.5, temperature=0"]
    assert candidates[0].resources == INITIAL
    assert candidates[1].template is None


def test_temperatures_are_laid_over_sampling_settings():
    names = [each.name for each in make(sampling=[{"top_p": 1}, {"top_k": 5}], temperatures=[0, 1])]
    assert names == [
        "top_p=1, temperature=0",
        "top_p=1, temperature=1",
        "top_k=5, temperature=0",
        "top_k=5, temperature=1",
    ]


def test_a_proxy_stays_a_proxy():
    candidates = make(initial={"llm": ProxyLLM(endpoint="http://p/v1", model="m")}, temperatures=[0, 1])
    model = candidates[1].resources["llm"]
    assert isinstance(model, ProxyLLM)
    assert model.sampling_parameters == {"temperature": 1}
    assert model.get_base_url("r", "a") == "http://p/rollout/r/attempt/a/v1"


def test_the_resources_to_change_can_be_named():
    initial: NamedResources = {
        "user": PromptTemplate(template="u"),
        "system": PromptTemplate(template="s"),
        "main": MODEL,
        "judge": MODEL,
    }
    [_, second] = make(initial, templates=["x"], temperatures=[0, 1], prompt="system", llm="main")
    assert second.resources["system"] == PromptTemplate(template="x")
    assert second.resources["user"] == initial["user"]
    assert second.resources["judge"] is MODEL
    assert make(initial, templates=["x", "y"], prompt="new")[0].resources["new"] == PromptTemplate(
        template="x"
    )


@pytest.mark.parametrize(
    ("initial", "settings", "message"),
    [
        (INITIAL, {}, "one candidate only"),
        (INITIAL, {"templates": ["x"]}, "one candidate only"),
        (INITIAL, {"templates": ["x", "x"]}, "'prompt 1' and 'prompt 2' are the same"),
        (INITIAL, {"temperatures": [0, 0]}, "are the same"),
        (INITIAL, {"temperatures": [0], "sampling": [{"temperature": 1}]}, "not in both"),
        ({}, {"temperatures": [0, 1]}, "need one model in the initial resources, and there are 0"),
        ({"a": MODEL, "b": MODEL}, {"temperatures": [0, 1]}, r"there are 2 \(a, b\); say which one: llm="),
        (INITIAL, {"temperatures": [0, 1], "llm": "gpt"}, "no model named 'gpt' .* models: llm"),
        (INITIAL, {"templates": ["x", "y"], "prompt": "llm"}, "'llm' is a LLM, not a prompt template"),
        (
            {"a": PromptTemplate(template="a"), "b": PromptTemplate(template="b")},
            {"templates": ["x", "y"]},
            r"several prompt templates \(a, b\); say which one",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(initial: NamedResources, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        make(initial, **settings)
