"""Resources: endpoints, prompt templates, and kinds that plugins add."""

import sys
import time
import types
import warnings
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from lightning_core.errors import LightningError, ResourceError
from lightning_core.types import (
    LLM,
    Attempt,
    AttemptedRollout,
    NamedResources,
    PromptTemplate,
    ProxyLLM,
    Resource,
    ResourcesUpdate,
    register_resource_kind,
    resource_kinds,
    resources,
)

ATTEMPTED = AttemptedRollout(
    rollout_id="ro-1",
    input=None,
    start_time=0,
    attempt=Attempt(rollout_id="ro-1", attempt_id="at-1", sequence_id=1, start_time=0),
)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the kinds that a test registers."""
    monkeypatch.setattr(resources, "_kinds", dict(resource_kinds()))


def proxy(endpoint: str = "http://host:1/v1") -> ProxyLLM:
    return ProxyLLM(endpoint=endpoint, model="m", sampling_parameters={"temperature": 0.5}, api_key="key")


def test_an_llm_gives_its_endpoint_and_hides_its_key():
    llm = LLM(endpoint="http://host/v1", model="m", api_key="secret-key")
    assert llm.get_base_url() == "http://host/v1"
    assert llm.resource_type == "llm"
    assert "secret-key" not in repr(llm)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://host:1/v1", "http://host:1/rollout/ro-1/attempt/at-1/v1"),
        ("http://host:1/v1/", "http://host:1/rollout/ro-1/attempt/at-1/v1"),
        ("http://host:1", "http://host:1/rollout/ro-1/attempt/at-1"),
        ("http://host:1/", "http://host:1/rollout/ro-1/attempt/at-1"),
        ("http://host:1/proxy/v1", "http://host:1/proxy/rollout/ro-1/attempt/at-1/v1"),
        ("http://host:1/v1/models", "http://host:1/v1/models/rollout/ro-1/attempt/at-1"),
        ("http://host:1/xv1", "http://host:1/xv1/rollout/ro-1/attempt/at-1"),
        ("https://host/v1?key=a", "https://host/rollout/ro-1/attempt/at-1/v1?key=a"),
    ],
)
def test_a_proxy_bakes_the_ids_in_before_a_trailing_v1(endpoint: str, url: str):
    llm = proxy(endpoint)
    assert llm.get_base_url("ro-1", "at-1") == url
    assert llm.get_base_url(rollout_id="ro-1", attempt_id="at-1") == url
    assert llm.get_base_url("ro-1", attempt_id="at-1") == url


def test_a_proxy_without_ids_gives_the_plain_endpoint():
    assert proxy().get_base_url() == "http://host:1/v1"
    assert proxy().get_base_url(None, None) == "http://host:1/v1"


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("ro-1",), {}),
        ((), {"attempt_id": "at-1"}),
        (("ro-1", None), {}),
        (("", "at-1"), {}),
        (("a", "b", "c"), {}),
        ((), {"rollout": "ro-1"}),
    ],
)
def test_a_proxy_wants_both_ids_or_none(args: tuple[object, ...], kwargs: dict[str, object]):
    with pytest.raises(ResourceError, match="rollout_id and attempt_id"):
        proxy().get_base_url(*args, **kwargs)


def test_a_proxy_becomes_a_plain_llm_of_one_attempt():
    llm = proxy().with_attempted_rollout(ATTEMPTED)
    assert type(llm) is LLM
    assert llm.endpoint == llm.get_base_url() == "http://host:1/rollout/ro-1/attempt/at-1/v1"
    assert (llm.model, llm.api_key, llm.sampling_parameters) == ("m", "key", {"temperature": 0.5})


def test_direct_use_of_a_proxy_endpoint_warns_and_nothing_else_does():
    llm = proxy()
    with pytest.warns(UserWarning, match="get_base_url") as caught:
        assert llm.endpoint == "http://host:1/v1"
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repr(llm)
        assert llm == proxy()
        assert llm.model_copy(deep=True).get_base_url() == "http://host:1/v1"
        assert ProxyLLM.model_validate_json(llm.model_dump_json()) == llm
        llm.with_attempted_rollout(ATTEMPTED)
        assert llm.model == "m"


def test_a_plain_llm_is_of_no_other_kind():
    with pytest.raises(ValidationError, match="LLM is of kind 'llm', not 'proxy_llm'"):
        LLM(endpoint="http://host", model="m", resource_type="proxy_llm")


# Prompt templates


def test_an_f_string_template_is_formatted():
    template = PromptTemplate(template="{name!r} is {value:.2f}, {items[0]}, {{kept}}")
    assert template.engine == "f-string"
    assert template.format(name="pi", value=3.14159, items=["x"]) == "'pi' is 3.14, x, {kept}"
    assert template.format(name="pi", value=3.14159, items=["x"], unused=1).endswith("{kept}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question} {context}", r"no value for \{context\}; given: question"),
        ("{question", "Double the braces"),
        ("}", "Double the braces"),
        ("{}", "plain name"),
        ("{0}", "plain name"),
        ("{question:d}", "Double the braces"),
    ],
)
def test_a_malformed_f_string_template_says_what_is_wrong(template: str, message: str):
    with pytest.raises(ResourceError, match=message):
        PromptTemplate(template=template).format(question="why")


def test_an_f_string_template_reaches_no_attributes():
    with pytest.raises(ResourceError, match="plain name"):
        PromptTemplate(template="{x.__class__.__mro__}").format(x=1)


def test_a_jinja_template_is_formatted():
    pytest.importorskip("jinja2", reason="the extra lightning-core[jinja] is not installed")
    template = PromptTemplate(template="{% for i in items %}{{ i }};{% endfor %}", engine="jinja")
    assert template.format(items=[1, 2]) == "1;2;"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ items.append(1) }}",
        "{{ missing }}",
        "{% for %}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_jinja_template_cannot_break_out_and_its_errors_are_ours(template: str):
    pytest.importorskip("jinja2", reason="the extra lightning-core[jinja] is not installed")
    items: list[int] = []
    with pytest.raises(ResourceError, match="jinja"):
        PromptTemplate(template=template, engine="jinja").format(items=items)
    assert items == []


@pytest.mark.parametrize(("engine", "package"), [("jinja", "jinja2"), ("poml", "poml")])
def test_an_engine_that_is_not_installed_gives_the_install_line(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"pip install 'lightning-core\[{engine}\]'"):
        PromptTemplate(template="x", engine=engine).format()


def test_poml_is_given_the_template_and_the_values(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, dict[str, object]]] = []
    module = types.ModuleType("poml")
    module.poml = lambda template, context: calls.append((template, context)) or "rendered"
    monkeypatch.setitem(sys.modules, "poml", module)
    assert PromptTemplate(template="<p>{{q}}</p>", engine="poml").format(q=1) == "rendered"
    assert calls == [("<p>{{q}}</p>", {"q": 1})]


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValidationError, match="engine"):
        PromptTemplate(template="x", engine="mustache")


# Kinds


def test_named_resources_are_read_back_as_their_own_classes():
    named = {
        "llm": LLM(endpoint="http://host", model="m", api_key="k"),
        "proxy": proxy(),
        "prompt": PromptTemplate(template="{q}"),
    }
    adapter = TypeAdapter(NamedResources)
    again = adapter.validate_json(adapter.dump_json(named))
    assert again == named
    assert [type(value) for value in again.values()] == [LLM, ProxyLLM, PromptTemplate]
    assert list(again) == list(named)


def test_a_plugin_can_add_a_kind(kinds: None):
    @register_resource_kind
    class Toolbox(Resource):
        resource_type: Literal["toolbox"] = "toolbox"
        tools: list[str]

    update = ResourcesUpdate(resources_id="rs-1", resources={"tools": Toolbox(tools=["hammer"])})
    again = ResourcesUpdate.model_validate_json(update.model_dump_json())
    assert type(again.resources["tools"]) is Toolbox
    assert again == update
    assert resource_kinds()["toolbox"] is Toolbox


def test_a_kind_that_is_taken_or_missing_is_refused(kinds: None):
    class Other(Resource):
        resource_type: Literal["llm"] = "llm"

    with pytest.raises(ResourceError, match=r"'llm' .* is taken by lightning_core"):
        register_resource_kind(Other)

    class Nameless(Resource):
        pass

    with pytest.raises(ResourceError, match="must give its kind"):
        register_resource_kind(Nameless)
    assert resource_kinds()["llm"] is LLM


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"resource_type": "lm", "endpoint": "x", "model": "m"},
            "unknown resource kind 'lm'; did you mean 'llm'",
        ),
        (
            {"resource_type": "robot"},
            r"unknown resource kind 'robot'\. Known kinds: llm, prompt_template, proxy_llm",
        ),
        ({"endpoint": "x"}, "a mapping with a resource_type"),
        ("llm", "an instance of Resource"),
        ({"resource_type": "llm", "model": "m"}, "endpoint"),
    ],
)
def test_a_resource_that_cannot_be_read_says_why(value: object, message: str):
    with pytest.raises(ValidationError, match=message):
        ResourcesUpdate(resources_id="rs", resources={"x": value})


def test_an_update_has_a_version_and_times_in_seconds():
    update = ResourcesUpdate(resources_id="rs", resources={})
    assert update.version == 1
    assert update.create_time == pytest.approx(time.time(), abs=60)
    with pytest.raises(ValidationError, match="version"):
        ResourcesUpdate(resources_id="rs", resources={}, version=0)


def test_resource_errors_are_value_errors_of_ours():
    assert issubclass(ResourceError, ValueError)
    assert issubclass(ResourceError, LightningError)
