"""The garbage collector during a run."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from lightning_core import Trainer, rollout
from lightning_core.execution.garbage import NEW_OBJECTS, rare_collections
from lightning_core.types import NamedResources


@pytest.fixture(autouse=True)
def usual_threshold() -> Generator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 11, 12)
    yield
    gc.enable()
    gc.set_threshold(*before)


def test_a_run_collects_rarely_and_leaves_the_setting_as_it_was():
    seen: list[int] = []

    @rollout
    async def agent(task: int, resources: NamedResources) -> float:
        seen.append(gc.get_threshold()[0])
        return 1.0

    Trainer(algorithm="baseline", tracer="dummy").fit(agent, [1])
    assert seen == [NEW_OBJECTS]
    assert gc.get_threshold() == (700, 11, 12)


def test_a_failure_leaves_the_setting_as_it_was():
    with pytest.raises(ZeroDivisionError), rare_collections():
        raise ZeroDivisionError
    assert gc.get_threshold() == (700, 11, 12)


@pytest.mark.parametrize("chosen", [NEW_OBJECTS, 50_000, 0])
def test_what_the_user_has_chosen_stays(chosen: int):
    gc.set_threshold(chosen, 11, 12)
    with rare_collections():
        assert gc.get_threshold() == (chosen, 11, 12)
    assert gc.get_threshold() == (chosen, 11, 12)


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    with rare_collections():
        assert not gc.isenabled()
        assert gc.get_threshold()[0] == 700
    assert not gc.isenabled()


def test_what_is_chosen_meanwhile_stays():
    with rare_collections():
        gc.set_threshold(30_000)
    assert gc.get_threshold()[0] == 30_000
