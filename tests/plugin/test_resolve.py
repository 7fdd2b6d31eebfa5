"""One way from what a user writes to a component: every form of specification, and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from lightning_core.errors import (
    BrokenPluginError,
    InvalidSpecError,
    PluginSettingsError,
    StoreUnavailableError,
    UnknownPluginError,
)
from lightning_core.plugin import Component, PluginManager, default_name, resolve, resolve_argument
from lightning_core.plugin.catalog import DEFAULTS, FIRST_PARTY, PLURALS
from lightning_core.plugin.component import KINDS
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.dummy import DummyTracer

HERE = "lightning_core.tracer.dummy"


class Service(DummyTracer):
    def __init__(self, endpoint: str, *, retries: int = 3, n_runners: int | None = None) -> None:
        super().__init__()
        self.endpoint, self.retries, self.n_runners = endpoint, retries, n_runners


class Open(DummyTracer):
    def __init__(self, **anything: Any) -> None:
        super().__init__()
        self.anything = anything


# Forms


def test_an_instance_is_returned_as_it_is() -> None:
    store = InMemoryLightningStore()
    assert resolve("store", store) is store


@pytest.mark.parametrize(
    "spec",
    [
        DummyTracer,
        lambda: DummyTracer(),
        "dummy",
        " dummy ",
        f"{HERE}:DummyTracer",
        f"{HERE}.DummyTracer",
        {"type": "dummy"},
        {"type": DummyTracer},
        {"type": f"{HERE}:DummyTracer"},
        Component("mine", DummyTracer),
    ],
)
def test_every_form_makes_the_component(spec: Any) -> None:
    assert type(resolve("tracer", spec)) is DummyTracer


def test_an_import_path_may_name_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_core.tracer.dummy as module

    monkeypatch.setattr(module, "READY", DummyTracer(), raising=False)
    assert resolve("tracer", f"{HERE}:READY") is module.READY  # type: ignore[attr-defined]


def test_a_url_is_read_by_the_component_of_its_scheme(only_packages: PluginManager) -> None:
    assert resolve("store", "good://there").place == "there"
    assert resolve("store", {"type": "good://there", "place": "elsewhere"}).place == "elsewhere"


def test_settings_reach_the_class_and_the_factory() -> None:
    made = resolve("tracer", {"type": Service, "endpoint": "here", "retries": 5})
    assert (made.endpoint, made.retries) == ("here", 5)
    assert resolve("tracer", {"type": Open, "whatever": 1}).anything == {"whatever": 1}


def test_an_alias_selects_the_same_component(only_packages: PluginManager) -> None:
    assert only_packages.load("strategy", "shm") is only_packages.load("strategy", "shared-memory")
    assert type(resolve("tracer", "fine")) is type(resolve("tracer", "good"))


def test_settings_may_be_added_to_nested_ones() -> None:
    made = resolve(
        "tracer", {"type": {"type": Service, "endpoint": "inner", "retries": 1}, "endpoint": "outer"}
    )
    assert (made.endpoint, made.retries) == ("outer", 1)


# Defaults of the kinds


@pytest.mark.parametrize(
    ("kind", "name"),
    [("store", "memory"), ("strategy", "shared-memory"), ("runner", "agent"), ("tracer", "dummy")],
)
def test_none_selects_the_default(only_core: PluginManager, kind: Any, name: str) -> None:
    assert default_name(kind) == name
    assert type(resolve(kind, None)) is type(resolve(kind, name))


@pytest.mark.parametrize("kind", ["adapter", "algorithm", "hook", "llm_proxy", "engine"])
def test_none_selects_nothing_where_there_is_no_default(only_core: PluginManager, kind: Any) -> None:
    assert resolve(kind, None) is None


def test_installed_default_is_preferred_unless_disabled(
    only_core: PluginManager, announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce("lightning-tracer-otel", "tracer.otel")
    announce("lightning-adapter-triplet", "adapter.triplet")
    only_core.refresh()
    assert (default_name("tracer"), default_name("adapter")) == ("otel", "triplet")
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.otel,adapter.*")
    assert (default_name("tracer"), default_name("adapter")) == ("dummy", None)


def test_broken_default_is_an_error_and_not_skipped(
    only_core: PluginManager, announce: Callable[..., None]
) -> None:
    announce("lightning-tracer-otel", "tracer.otel")
    only_core.refresh()
    with pytest.raises(BrokenPluginError, match="nowhere_to_be_found"):
        resolve("tracer", None)


# Injected defaults


def test_a_default_is_injected_where_it_is_taken() -> None:
    assert resolve("tracer", {"type": Service, "endpoint": "x"}, n_runners=4, color="red").n_runners == 4
    assert resolve("tracer", DummyTracer, n_runners=4).__class__ is DummyTracer
    assert resolve("tracer", Open, n_runners=4).anything == {}


def test_what_the_user_set_wins_over_a_default() -> None:
    made = resolve("tracer", {"type": Service, "endpoint": "x", "n_runners": 2}, n_runners=4)
    assert made.n_runners == 2
    assert resolve("strategy", {"type": "shm", "n_runners": 2}, n_runners=4).n_runners == 2


def test_a_default_is_injected_through_the_config() -> None:
    assert resolve("strategy", "shared-memory", n_runners=4).n_runners == 4
    with pytest.raises(PluginSettingsError, match=r"strategy\.n_runners: input should be greater"):
        resolve("strategy", "shared-memory", n_runners=0)


def test_a_part_is_injected_into_the_factory_and_is_no_setting() -> None:
    tracer = DummyTracer()
    runner: Any = resolve("runner", {"type": "agent", "concurrency": 3}, tracer=tracer, n_runners=2)
    assert (runner.tracer, runner.concurrency) == (tracer, 3)
    with pytest.raises(PluginSettingsError, match=r"runner\.tracer: unknown setting"):
        resolve("runner", {"type": "agent", "tracer": tracer}, tracer=tracer)


# Settings (trap 31: what is not understood is never ignored)


def test_settings_are_validated_and_complete(only_packages: PluginManager) -> None:
    made = resolve("tracer", {"type": "good", "limit": "7", "api_key": "sk-secret"})
    assert isinstance(made.settings["api_key"], SecretStr)
    assert made.settings["api_key"].get_secret_value() == "sk-secret"
    assert made.settings | {"api_key": None} == {
        "service_name": "agents",
        "mode": "all",
        "limit": 7,
        "tags": [],
        "api_key": None,
    }


def test_unknown_setting_names_the_field_and_what_was_meant(only_packages: PluginManager) -> None:
    with pytest.raises(PluginSettingsError) as caught:
        resolve("tracer", {"type": "good", "servce_name": "x"})
    assert str(caught.value) == (
        "tracer.servce_name: unknown setting; did you mean 'service_name'? "
        "tracer 'good' takes service_name, mode, limit, tags, api_key"
    )


def test_all_wrong_settings_are_named_at_once(only_packages: PluginManager) -> None:
    spec = {"type": "good", "mode": "none", "limit": 0, "tags": ["a", 1], "colour": "red"}
    with pytest.raises(PluginSettingsError) as caught:
        resolve("tracer", spec)
    message = str(caught.value)
    for part in (
        "tracer.colour: unknown",
        "tracer.mode: input should be 'all' or 'some'",
        "tracer.limit: ",
        "tracer.tags.1: ",
    ):
        assert part in message


def test_a_wrong_key_is_not_shown(only_packages: PluginManager) -> None:
    with pytest.raises(PluginSettingsError) as caught:
        resolve("tracer", {"type": "good", "api_key": ["sk-secret"]})
    assert "sk-secret" not in str(caught.value)
    assert "tracer.api_key: input should be a valid string" in str(caught.value)


def test_a_config_that_forgot_to_forbid_ignores_nothing_either() -> None:
    class Lenient(BaseModel):
        size: int = 1

    with pytest.raises(PluginSettingsError, match=r"tracer\.sise: unknown setting; did you mean 'size'"):
        resolve("tracer", {"type": Component("lenient", lambda size: DummyTracer(), Lenient), "sise": 2})


def test_unknown_keyword_of_a_class_is_refused() -> None:
    with pytest.raises(PluginSettingsError) as caught:
        resolve("tracer", {"type": Service, "endpoint": "x", "retry": 5})
    assert "tracer.retry: unknown setting; did you mean 'retries'?" in str(caught.value)


def test_missing_keyword_of_a_class_is_named() -> None:
    with pytest.raises(PluginSettingsError, match=r"tracer\.endpoint: .* needs this setting"):
        resolve("tracer", Service)


def test_the_argument_begins_the_message(only_packages: PluginManager) -> None:
    with pytest.raises(PluginSettingsError, match=r"^hooks\[2\]\.size: unknown setting"):
        resolve_argument("hooks[2]", "hook", {"type": "good", "size": 1})


def test_instance_takes_no_settings() -> None:
    with pytest.raises(InvalidSpecError, match="is an instance already, and takes no settings; given: limit"):
        resolve("tracer", {"type": DummyTracer(), "limit": 1})


def test_url_that_cannot_be_read_says_why_and_shows_no_password(only_packages: PluginManager) -> None:
    with pytest.raises(PluginSettingsError, match=r"store: 'good://': good:// names no place"):
        resolve("store", "good://")
    with pytest.raises(InvalidSpecError) as caught:
        resolve("tracer", "good://user:pass@host")
    assert "tracer 'good' takes no URL" in str(caught.value)
    assert "pass@" not in str(caught.value)


# Names


def test_unknown_name_gives_the_way_out(only_core: PluginManager, announce: Callable[..., None]) -> None:
    announce("lightning-tracer-otel", "tracer.otel")
    with pytest.raises(UnknownPluginError) as caught:
        resolve("tracer", "agentop")
    assert str(caught.value) == (
        "unknown tracer 'agentop'; did you mean 'agentops'? installed tracers: dummy, otel. "
        "To get it: pip install lightning-tracer-agentops"
    )
    assert isinstance(caught.value, LookupError)


def test_known_package_that_is_not_installed_gives_its_install_line(only_core: PluginManager) -> None:
    with pytest.raises(UnknownPluginError) as caught:
        resolve("store", "sqlite:///runs.db")
    assert str(caught.value) == (
        "unknown store 'sqlite'; installed stores: memory. To get it: pip install lightning-store-sqlite"
    )


def test_misspelling_of_an_installed_name_gives_no_install_line(only_core: PluginManager) -> None:
    with pytest.raises(UnknownPluginError) as caught:
        resolve("store", "Memory")
    assert str(caught.value) == "unknown store 'Memory'; did you mean 'memory'? installed stores: memory"


def test_nothing_installed_of_that_kind(only_core: PluginManager) -> None:
    with pytest.raises(UnknownPluginError, match=r"unknown hook 'zzz'; installed hooks: none$"):
        resolve("hook", "zzz")


def test_unknown_kind() -> None:
    with pytest.raises(InvalidSpecError, match="there is no kind 'tracr'; did you mean 'tracer'"):
        resolve("tracr", "x")  # type: ignore[call-overload]


# Import paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_package.module:Class", "No module named 'no_such_package'"),
        ("no_such_package.Class", "No module named 'no_such_package'"),
        (f"{HERE}:DummyTraser", "has no 'DummyTraser'; did you mean 'DummyTracer'"),
        (f"{HERE}.DummyTraser", "has no 'DummyTraser'; did you mean 'DummyTracer'"),
    ],
)
def test_import_path_that_leads_nowhere(path: str, expected: str) -> None:
    with pytest.raises(BrokenPluginError) as caught:
        resolve("tracer", path)
    assert expected in str(caught.value)


def test_error_inside_an_imported_module_is_not_hidden(only_packages: PluginManager) -> None:
    with pytest.raises(BrokenPluginError, match="a_package_that_nobody_has"):
        resolve("tracer", "lightning_test_broken_import.plugin.Tracer")


def test_module_instead_of_a_class() -> None:
    with pytest.raises(InvalidSpecError, match=f"'{HERE}' is a module; name the class in it: '{HERE}:Class'"):
        resolve("tracer", HERE)


# What is no component


@pytest.mark.parametrize("spec", [1, 1.5, b"dummy", ["dummy"], object()])
def test_value_of_no_known_form(spec: object) -> None:
    with pytest.raises(InvalidSpecError, match="is no tracer") as caught:
        resolve("tracer", spec)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("text", ["a b.c", "module:", ":Class", "x.:y", "1.2"])
def test_text_of_no_known_form(text: str) -> None:
    with pytest.raises(InvalidSpecError, match="is neither a name, nor a URL"):
        resolve("tracer", text)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InMemoryLightningStore, "the class InMemoryLightningStore does not inherit from BaseTracer"),
        (BaseTracer, "the class BaseTracer is abstract; it lacks get_last_trace, trace_context"),
        (lambda: 3, "made a value of type int, not an instance of BaseTracer"),
        (lambda: None, "made a value of type NoneType, not an instance of BaseTracer"),
        ({"limit": 1}, "settings need a 'type' that says of which tracer"),
        ({}, "settings need a 'type'"),
        ({1: 2}, "settings have names, and 1 is of type int"),
    ],
)
def test_spec_that_makes_no_component(spec: Any, expected: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        resolve("tracer", spec)
    assert expected in str(caught.value)


def test_settings_without_a_type_of_a_kind_without_default(only_core: PluginManager) -> None:
    with pytest.raises(InvalidSpecError, match="there are settings, but no 'type' says of which algorithm"):
        resolve("algorithm", {"type": None, "n": 1})


def test_async_factory_is_refused() -> None:
    async def make() -> DummyTracer:
        return DummyTracer()

    with pytest.raises(InvalidSpecError, match="is async; make it a plain function"):
        resolve("tracer", make)


# Errors of a factory


def test_missing_package_of_a_factory_is_its_own_error() -> None:
    def make() -> Any:
        import a_package_that_nobody_has  # type: ignore[import-not-found]

        return a_package_that_nobody_has

    with pytest.raises(
        BrokenPluginError, match="tracer 'mine' cannot be made: No module named 'a_package"
    ) as caught:
        resolve("tracer", Component("mine", make))
    assert isinstance(caught.value, ImportError)


def test_error_of_a_factory_passes_through() -> None:
    def make() -> Any:
        raise StoreUnavailableError("the path is not writable")

    with pytest.raises(StoreUnavailableError, match="not writable"):
        resolve("store", make)


def test_factory_that_does_not_take_its_settings_is_broken() -> None:
    class Config(BaseModel):
        size: int = 1

    with pytest.raises(
        BrokenPluginError, match="the factory of tracer 'mine' does not take its own settings"
    ):
        resolve("tracer", Component("mine", lambda: DummyTracer(), Config))


# Proxies have no base class


def test_a_proxy_is_what_can_be_started_and_stopped() -> None:
    class Proxy:
        def start(self) -> None: ...

        def stop(self) -> None: ...

    assert isinstance(resolve("llm_proxy", Proxy), Proxy)
    with pytest.raises(InvalidSpecError, match=r"not an object with start\(\) and stop\(\)"):
        resolve("llm_proxy", dict)


def test_the_tables_know_every_kind() -> None:
    for table in (DEFAULTS, FIRST_PARTY, PLURALS):
        assert set(table) == set(KINDS)
