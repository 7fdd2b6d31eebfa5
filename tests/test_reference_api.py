"""Every name of Agent Lightning's API is here, under the same module, with the same parameters and defaults."""

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

REFERENCE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "reference_api.json").read_text(encoding="utf-8")
)

# Provided by packages of their own: the section or "section.name", the import name and the distribution.
ELSEWHERE = {
    "client": ("lightning_legacy", "lightning-legacy"),
    "server": ("lightning_legacy", "lightning-legacy"),
    "runner.AgentRunner": ("lightning_legacy", "lightning-legacy"),
    "tracer.AgentOpsTracer": ("lightning_tracer_agentops", "lightning-tracer-agentops"),
    "tracer.OtelTracer": ("lightning_tracer_otel", "lightning-tracer-otel"),
}
ENTRIES = [(section, name) for section, names in REFERENCE.items() for name in names]


def provider(section: str, name: str) -> tuple[str, str] | None:
    return ELSEWHERE.get(section) or ELSEWHERE.get(f"{section}.{name}")


def load(section: str, name: str) -> Any:
    provided = provider(section, name)
    if provided is not None:
        pytest.importorskip(provided[0], reason=f"{provided[1]} is not installed")
    return getattr(importlib.import_module(f"lightning_core.{section}"), name)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def expected_parameters(signature: str) -> list[inspect.Parameter]:
    namespace: dict[str, Any] = {}
    exec(f"def function{signature}: ...", namespace)
    return list(parameters(namespace["function"]).values())


def check_signature(function: Any, signature: str, where: str) -> None:
    expected = expected_parameters(signature)
    ours = parameters(function)
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    wanted = [parameter for parameter in expected if parameter.kind not in variable]
    positional = [name for name, each in ours.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert [each.name for each in wanted if each.kind is each.POSITIONAL_OR_KEYWORD] == positional[
        : sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in wanted)
    ], where
    for parameter in wanted:
        assert parameter.name in ours, f"{where}: no parameter {parameter.name}"
        # What the reference requires may be optional here; what it leaves out must do the same here.
        if parameter.default is not parameter.empty:
            assert ours[parameter.name].default == parameter.default, f"{where}: default of {parameter.name}"
    for kind in variable:
        if any(each.kind is kind for each in expected):
            assert any(each.kind is kind for each in ours.values()), f"{where}: no {kind.description}"
    known = {parameter.name for parameter in expected}
    for name, parameter in ours.items():
        if name not in known and parameter.kind not in variable:
            assert parameter.default is not parameter.empty, f"{where}: {name} is required and not of the API"


def check_member(cls: type, name: str, member: dict[str, Any], where: str) -> None:
    assert hasattr(cls, name), where
    ours = inspect.getattr_static(cls, name)
    if member.get("property"):
        assert isinstance(ours, property), where
        return
    if member.get("static"):
        assert isinstance(ours, staticmethod), where
    if "signature" in member:
        check_signature(getattr(cls, name), member["signature"], where)
    for keyword in member.get("keywords", ()):
        assert keyword in parameters(getattr(cls, name)), f"{where}: no keyword {keyword}"
    if member.get("async"):
        assert inspect.iscoroutinefunction(ours), f"{where} must be async"


def test_the_reference_has_152_names():
    members = [entry.get("members", {}) for names in REFERENCE.values() for entry in names.values()]
    assert len(ENTRIES) == 50
    assert len(ENTRIES) + sum(map(len, members)) == 152


@pytest.mark.parametrize(("section", "name"), ENTRIES, ids=[f"{section}.{name}" for section, name in ENTRIES])
def test_a_name_of_the_reference_is_here_with_its_signature(section: str, name: str):
    entry = REFERENCE[section][name]
    ours = load(section, name)
    where = f"lightning_core.{section}.{name}"
    if "signature" in entry:
        check_signature(ours, entry["signature"], where)
        return
    if not entry.get("class"):
        assert "alias" in entry
        return
    assert inspect.isclass(ours), where
    bases = {base.__name__ for base in ours.__mro__}
    assert set(entry["bases"]) <= bases, f"{where}: bases"
    if "fields" in entry:
        assert issubclass(ours, BaseModel)
        assert set(entry["fields"]) <= set(ours.model_fields), f"{where}: fields"
    for member, value in entry.get("values", {}).items():
        assert ours[member].value == value, where
    for member in entry.get("names", ()):
        assert member in ours.__members__, where
    for member, description in entry.get("members", {}).items():
        check_member(ours, member, description, f"{where}.{member}")


@pytest.mark.parametrize(
    ("section", "name"),
    [*((section, name) for section, name in ENTRIES if provider(section, name)), ("llm_proxy", "LLMProxy")],
)
def test_a_name_that_a_missing_package_provides_gives_the_install_line(
    section: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    package, distribution = provider(section, name) or ("lightning_llm_proxy", "lightning-llm-proxy")
    module = importlib.import_module(f"lightning_core.{section}")
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(vars(module), name, raising=False)
    assert name in dir(module)
    with pytest.raises(ImportError, match=f"pip install {distribution}"):
        getattr(module, name)


def test_a_door_has_no_other_names():
    module = importlib.import_module("lightning_core.client")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018 - the access is the test
