"""Lifecycle hooks are checked when they are registered, and come in the order that their list shows."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock

import pytest

from lightning_core import Hook, hookimpl
from lightning_core.errors import InvalidHookError
from lightning_core.plugin import EVENTS, LifecycleHooks, PluginManager, collect_hooks, resolve


class Plain(Hook):
    async def on_rollout_start(self, **event: Any) -> None: ...

    async def on_trace_start(self, **event: Any) -> None: ...

    async def on_trace_end(self, **event: Any) -> None: ...

    async def on_rollout_end(self, **event: Any) -> None: ...


class First(Plain):
    @hookimpl(tryfirst=True)
    async def on_trace_end(self, **event: Any) -> None: ...


class Last(Plain):
    @hookimpl(trylast=True)
    async def on_trace_end(self, **event: Any) -> None: ...


def order(calls: LifecycleHooks, event: str) -> list[Hook]:
    return [hook for hook, _ in getattr(calls, event)]


@pytest.mark.parametrize("event", EVENTS)
def test_hooks_come_in_registration_order(event: str) -> None:
    hooks = [Plain(), Plain(), Plain()]
    assert order(collect_hooks(hooks), event) == hooks


def test_tryfirst_and_trylast_move_a_hook_for_that_event_only() -> None:
    last, one, first, two, other_last, other_first = Last(), Plain(), First(), Plain(), Last(), First()
    hooks = [last, one, first, two, other_last, other_first]
    calls = collect_hooks(hooks)
    assert order(calls, "on_trace_end") == [first, other_first, one, two, last, other_last]
    assert order(calls, "on_trace_start") == hooks


def test_only_overridden_events_are_listed() -> None:
    class EndOnly(Hook):
        async def on_rollout_end(self, **event: Any) -> None: ...

    calls = collect_hooks([Hook(), EndOnly()])
    assert [len(getattr(calls, event)) for event in EVENTS] == [0, 0, 0, 1]


def test_an_inherited_override_counts() -> None:
    class Child(First):
        pass

    assert len(collect_hooks([Child()]).on_trace_end) == 1


def test_an_override_on_the_instance_counts() -> None:
    hook = Hook()
    hook.on_rollout_end = AsyncMock()
    assert len(collect_hooks([hook]).on_rollout_end) == 1


async def test_a_hook_may_leave_out_keywords_it_does_not_use() -> None:
    seen: list[Any] = []

    class Short(Hook):
        async def on_rollout_end(self, *, rollout: Any, spans: Any) -> None:
            seen.append((rollout, spans))

    ((_, call),) = collect_hooks([Short()]).on_rollout_end
    await call(agent="agent", runner="runner", rollout="rollout", spans=[])
    assert seen == [("rollout", [])]


async def test_the_method_called_is_the_hooks_own() -> None:
    seen: list[Any] = []

    class Full(Hook):
        async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
            seen.append((self, agent, runner, rollout))

    hook = Full()
    ((found, call),) = collect_hooks([hook]).on_rollout_start
    await call(agent=1, runner=2, rollout=3)
    assert found is hook
    assert seen == [(hook, 1, 2, 3)]


def test_wrong_keyword_names_hook_event_and_parameter() -> None:
    class Typo(Hook):
        async def on_rollout_end(self, *, agent: Any, runner: Any, rolout: Any, spans: Any) -> None: ...

    with pytest.raises(InvalidHookError) as caught:
        collect_hooks([Typo()])
    assert str(caught.value) == (
        "Typo.on_rollout_end takes 'rolout', which the event does not pass; did you mean 'rollout'? "
        "It passes: agent, runner, rollout, spans"
    )


def test_wrong_keyword_with_a_default_is_refused_too() -> None:
    class Typo(Hook):
        async def on_rollout_start(self, *, span: Any = None, **others: Any) -> None: ...

    with pytest.raises(InvalidHookError, match=r"on_rollout_start takes 'span'"):
        collect_hooks([Typo()])


def test_hook_that_is_not_async_is_refused() -> None:
    class Blocking(Hook):
        def on_trace_end(self, **event: Any) -> None: ...

    with pytest.raises(
        InvalidHookError, match=r"Blocking\.on_trace_end is not async.*async def on_trace_end"
    ):
        collect_hooks([Blocking()])


def test_misspelled_event_is_refused() -> None:
    class Typo(Hook):
        async def on_rolout_end(self, **event: Any) -> None: ...

    with pytest.raises(
        InvalidHookError, match=r"Typo\.on_rolout_end is no lifecycle event; did you mean 'on_rollout_end'"
    ):
        collect_hooks([Typo()])


def test_marked_method_that_is_no_event_is_refused() -> None:
    class Stray(Hook):
        @hookimpl
        async def before_everything(self) -> None: ...

    with pytest.raises(InvalidHookError, match=r"before_everything is no lifecycle event"):
        collect_hooks([Stray()])


def test_methods_of_its_own_are_no_concern() -> None:
    class Own(Plain):
        async def report(self) -> None: ...

        def on_full_buffer(self) -> None: ...

    assert len(collect_hooks([Own()]).on_trace_end) == 1


def test_wrapper_is_refused() -> None:
    class Wrapper(Hook):
        @hookimpl(wrapper=True)
        async def on_trace_end(self, **event: Any) -> None: ...

    with pytest.raises(InvalidHookError, match="tryfirst and trylast only"):
        collect_hooks([Wrapper()])


@pytest.mark.parametrize("value", [object(), Hook, print])
def test_what_is_no_hook_is_refused(value: object) -> None:
    with pytest.raises(InvalidHookError, match=r"hooks\[1\] is of type"):
        collect_hooks([Hook(), value])


def test_the_same_hook_twice_is_refused() -> None:
    hook = Plain()
    with pytest.raises(InvalidHookError, match=r"hooks\[1\], a Plain, is in the list twice"):
        collect_hooks([hook, hook])


def test_hooks_that_compare_equal_are_different_hooks() -> None:
    class Equal(Plain):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert len(collect_hooks([Equal(), Equal()]).on_trace_end) == 2


def test_registering_reads_no_property_of_a_hook() -> None:
    class Lazy(Plain):
        @property
        def connection(self) -> Any:
            raise AssertionError("a property was read")

    assert len(collect_hooks([Lazy()]).on_trace_end) == 1


def test_hook_of_a_plugin_with_a_wrong_argument_is_refused(only_packages: PluginManager) -> None:
    hook = resolve("hook", "wrong")
    with pytest.raises(InvalidHookError, match=r"Wrong\.on_rollout_end takes 'rolout'"):
        collect_hooks([hook])
