"""The conformance suites pass a good package and a good hook, and fail what they are there to find."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from lightning_core import Hook
from lightning_core.errors import InvalidHookError, PluginError, VetoRollout
from lightning_core.plugin import PluginManager
from lightning_core.testing import HookConformance, PluginPackageConformance


@pytest.mark.usefixtures("packages_on_the_path")
class TestGoodPackage(PluginPackageConformance):
    distribution = "lightning-test-good"

    @pytest.fixture
    def packages_on_the_path(self, only_packages: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
        # For the suite's own subprocess.
        monkeypatch.setenv("PYTHONPATH", sys.path[0])


class Counting(Hook):
    def __init__(self) -> None:
        self.ended = 0

    async def on_rollout_end(self, **event: Any) -> None:
        self.ended += 1


class TestGoodHook(HookConformance):
    @pytest.fixture
    def make_hook(self) -> Callable[[], Hook]:
        return Counting


def suite(name: str) -> PluginPackageConformance:
    class Suite(PluginPackageConformance):
        distribution = f"lightning-test-{name}"

    return Suite()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("misspelled-kind", "test_every_entry_point_names_a_kind_and_a_component"),
        ("twin-one", "test_no_name_is_claimed_by_another_distribution"),
        ("reserved-name", "test_no_name_is_claimed_by_another_distribution"),
        ("unsatisfied-core", "test_it_requires_lightning_core_1"),
        ("broken-import", "test_every_component_is_provided"),
        ("wrong-api", "test_every_component_is_provided"),
        ("wrong-hookimpl", "test_every_component_is_provided"),
        ("broken-import", "test_the_module_imports_nothing_heavy"),
    ],
)
def test_bad_package_fails(only_packages: PluginManager, name: str, check: str) -> None:
    with pytest.raises((AssertionError, PluginError)):
        getattr(suite(name), check)()


def test_heavy_import_fails(only_packages: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", sys.path[0])
    bad = suite("good")
    monkeypatch.setattr(type(bad), "_modules", lambda self: ["pytest"])
    with pytest.raises(AssertionError, match="also imports"):
        bad.test_the_module_imports_nothing_heavy()


class Typo(Hook):
    async def on_rollout_end(self, *, rolout: Any) -> None: ...


class Silent(Hook):
    pass


class NeedsATrace(Hook):
    def __init__(self) -> None:
        self.traces: dict[str, int] = {}

    async def on_trace_start(self, *, rollout: Any, **event: Any) -> None:
        self.traces[rollout.rollout_id] = 0

    async def on_rollout_end(self, *, rollout: Any, **event: Any) -> None:
        del self.traces[rollout.rollout_id]


class OneAtATime(Hook):
    running = False

    async def on_rollout_start(self, **event: Any) -> None:
        assert not self.running
        self.running = True

    async def on_rollout_end(self, **event: Any) -> None:
        self.running = False


class Failing(Hook):
    async def on_rollout_end(self, **event: Any) -> None:
        raise RuntimeError("broken")


class Veto(Hook):
    async def on_rollout_start(self, **event: Any) -> None:
        raise VetoRollout("no")


@pytest.mark.parametrize("hook", [Typo, Silent])
def test_hook_that_follows_nothing_fails(hook: type[Hook]) -> None:
    with pytest.raises((AssertionError, InvalidHookError)):
        HookConformance().test_it_is_accepted_and_follows_an_event(hook)


async def test_hook_that_relies_on_a_trace_fails() -> None:
    with pytest.raises(KeyError):
        await HookConformance().test_it_follows_a_rollout_without_a_trace(NeedsATrace)


async def test_hook_that_relies_on_one_rollout_at_a_time_fails() -> None:
    with pytest.raises(AssertionError):
        await HookConformance().test_it_follows_rollouts_at_the_same_time(OneAtATime)


async def test_hook_that_vetoes_the_tests_rollouts_fails() -> None:
    with pytest.raises(AssertionError, match="vetoes"):
        await HookConformance().test_it_follows_a_rollout(Veto)


async def test_hook_that_fails_in_a_runner_fails(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AssertionError):
        await HookConformance().test_a_runner_awaits_it_without_an_error(Failing, caplog)
