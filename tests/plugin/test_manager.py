"""One broken plugin breaks neither another nor the listing, and selecting it says whose fault it is."""

from __future__ import annotations

import sys

import pytest

from lightning_core.errors import (
    BrokenPluginError,
    DisabledPluginError,
    IncompatiblePluginError,
    LightningError,
    PluginConflictError,
    UnknownPluginError,
)
from lightning_core.plugin import PluginManager, resolve


def test_selecting_imports_that_plugin_only(only_packages: PluginManager) -> None:
    component = only_packages.load("tracer", "good")
    assert component.summary == "Records nothing, well."
    loaded = {name.partition(".")[0] for name in sys.modules if name.startswith("lightning_test_")}
    assert loaded == {"lightning_test_good"}
    assert "lightning_test_good.sdk" not in sys.modules


def test_broken_plugin_is_blamed_with_its_version_and_the_way_out(only_packages: PluginManager) -> None:
    with pytest.raises(BrokenPluginError) as caught:
        only_packages.load("tracer", "broken")
    message = str(caught.value)
    assert (
        "lightning_test_broken_import.plugin of lightning-test-broken-import 1.2.3 cannot be loaded"
        in message
    )
    assert "No module named 'a_package_that_nobody_has'" in message
    assert "pip install --upgrade lightning-test-broken-import" in message
    assert "LIGHTNING_CORE_DISABLE_PLUGINS=tracer.broken" in message
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, LightningError)


def test_a_failure_is_kept_and_raised_at_every_selection(only_packages: PluginManager) -> None:
    errors: list[BrokenPluginError] = []
    for _ in range(2):
        with pytest.raises(BrokenPluginError) as caught:
            only_packages.load("tracer", "broken")
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert errors[0].__cause__ is errors[1].__cause__


def test_broken_plugin_breaks_no_other(only_packages: PluginManager) -> None:
    with pytest.raises(BrokenPluginError):
        only_packages.load("tracer", "broken")
    assert only_packages.load("tracer", "good").name == "good"
    assert "broken" in only_packages.names("tracer")


def test_core_version_is_checked_before_the_import(only_packages: PluginManager) -> None:
    with pytest.raises(IncompatiblePluginError) as caught:
        only_packages.load("tracer", "future")
    assert "lightning-test-unsatisfied-core 1.0.0 requires lightning-core>=9" in str(caught.value)
    assert "lightning_test_unsatisfied_core" not in sys.modules


def test_api_version_is_checked_after_the_import(only_packages: PluginManager) -> None:
    with pytest.raises(IncompatiblePluginError) as caught:
        only_packages.load("tracer", "newer")
    assert "lightning-test-wrong-api 1.0.0 was written for version 2 of the plugin interface" in str(
        caught.value
    )


def test_conflict_lists_both_distributions_with_versions(only_packages: PluginManager) -> None:
    with pytest.raises(PluginConflictError) as caught:
        only_packages.load("tracer", "twin")
    assert str(caught.value) == (
        "tracer 'twin' is provided by lightning-test-twin-one 1.1.0, lightning-test-twin-two 2.2.0; "
        "uninstall all but one: pip uninstall lightning-test-twin-two"
    )


def test_claim_on_a_builtin_name_changes_nothing_and_is_reported(only_packages: PluginManager) -> None:
    from lightning_core.tracer.dummy import DummyTracer

    assert type(resolve("tracer", "dummy")) is DummyTracer
    problem = next(one for one in only_packages.check() if one.entry == "tracer.dummy")
    assert (
        "is built into lightning-core, and lightning-test-reserved-name 1.0.0 claims the name"
        in problem.message
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "argument",
            "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
        ),
        (
            "misspelled",
            "it implements the unknown hook 'lightning_tracer', did you mean 'lightning_tracers'?",
        ),
        (
            "unprovided",
            "announces it, but lightning_tracers in lightning_test_wrong_hookimpl.unprovided returns 'another'",
        ),
    ],
)
def test_wrong_hook_implementation_is_broken(only_packages: PluginManager, name: str, expected: str) -> None:
    with pytest.raises(BrokenPluginError) as caught:
        only_packages.load("tracer", name)
    assert expected in " ".join(str(caught.value).split())
    assert "lightning-test-wrong-hookimpl 1.0.0" in str(caught.value)


def test_every_component_of_a_refused_module_gives_the_reason(only_packages: PluginManager) -> None:
    for name in ("argument", "argument-again"):
        with pytest.raises(BrokenPluginError, match="are declared in the hookimpl but can not be found"):
            only_packages.load("tracer", name)


@pytest.mark.parametrize("patterns", ["tracer.good", "hook.x, tracer.*", "*.good"])
def test_disabled_component_is_not_selectable_and_says_why(
    only_packages: PluginManager, monkeypatch: pytest.MonkeyPatch, patterns: str
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", patterns)
    assert "good" not in only_packages.names("tracer")
    with pytest.raises(DisabledPluginError, match=r"disabled by '.*' in .*LIGHTNING_CORE_DISABLE_PLUGINS"):
        resolve("tracer", "good")
    assert "lightning_test_good" not in sys.modules


def test_disabling_one_of_two_rivals_is_not_enough_to_select_the_other(
    only_packages: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.twin")
    with pytest.raises(DisabledPluginError):
        only_packages.load("tracer", "twin")


def test_check_finds_everything_that_is_wrong_and_nothing_else(only_packages: PluginManager) -> None:
    problems = {problem.entry for problem in only_packages.check()}
    assert problems == {
        "tracr.typo",
        "tracer.Bad Name",
        "tracer.twin",
        "tracer.dummy",
        "tracer.broken",
        "tracer.future",
        "tracer.newer",
        "tracer.argument",
        "tracer.argument-again",
        "tracer.misspelled",
        "tracer.unprovided",
    }
    assert all(problem.fix for problem in only_packages.check())


def test_check_reports_a_disabling_pattern_that_can_match_nothing(
    only_core: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "agentops,trcer.x,tracer.not_installed_here")
    assert [problem.entry for problem in only_core.check()] == ["agentops", "trcer.x"]
    assert only_core.idle_patterns() == ["agentops", "trcer.x", "tracer.not_installed_here"]


def test_unknown_name_of_a_misspelled_kind_points_to_it(only_packages: PluginManager) -> None:
    with pytest.raises(UnknownPluginError, match=r"lightning-test-misspelled-kind 1\.0\.0: .*'tracr\.typo'"):
        only_packages.load("tracer", "typo")
