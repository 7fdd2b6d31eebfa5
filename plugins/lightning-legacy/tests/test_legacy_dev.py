"""``DevTaskLoader``: a client without a server."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from lightning_legacy import AgentLightningClient, DevTaskLoader
from pydantic import ValidationError

from lightning_core.errors import ConfigurationError, DatasetError
from lightning_core.types import LLM, PromptTemplate, ResourcesUpdate, Rollout, Task

RESOURCES = {"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small")}


def test_inputs_become_tasks_that_are_handed_out_once_in_order():
    loader = DevTaskLoader(["a", {"q": "b"}], RESOURCES)
    tasks = [loader.poll_next_task(), loader.poll_next_task()]
    assert all(isinstance(task, Task) for task in tasks)
    assert [task.input for task in tasks if task is not None] == ["a", {"q": "b"}]
    assert len({task.rollout_id for task in tasks if task is not None}) == 2
    for task in tasks:
        assert task is not None
        assert (task.mode, task.num_claims) == ("train", 1)
        assert task.resources_id is not None
        update = loader.get_resources_by_id(task.resources_id)
        assert update is not None
        assert update.resources == RESOURCES
    assert loader.poll_next_task() is None
    assert loader.poll_next_task() is None


def test_whole_tasks_are_handed_out_as_they_are():
    tasks = [Task(rollout_id="ro-1", input="a", mode="val", resources_id="rs-1", metadata={"n": 1})]
    loader = DevTaskLoader(tasks, ResourcesUpdate(resources_id="rs-1", resources=RESOURCES))
    assert loader.poll_next_task() == tasks[0]
    latest = loader.get_latest_resources()
    assert latest is not None
    assert latest.resources_id == "rs-1"
    assert loader.get_resources_by_id("rs-1") == latest
    assert loader.get_resources_by_id("rs-2") is None


async def test_the_async_half_does_the_same():
    loader = DevTaskLoader(["a"], RESOURCES)
    task = await loader.poll_next_task_async()
    assert task is not None
    assert task.resources_id is not None
    assert (
        await loader.get_resources_by_id_async(task.resources_id) == await loader.get_latest_resources_async()
    )
    assert await loader.get_resources_by_id_async("rs-2") is None
    answer = await loader.post_rollout_async(Rollout(rollout_id=task.rollout_id, final_reward=1.0))
    assert answer is not None
    assert answer["status"] == "success"
    assert [rollout.final_reward for rollout in loader.rollouts] == [1.0]
    assert await loader.poll_next_task_async() is None


def test_reports_are_kept_and_the_list_of_them_is_ones_own():
    loader = DevTaskLoader(["a"], RESOURCES)
    for reward in (0.0, 1.0):
        assert loader.post_rollout(Rollout(rollout_id="ro", final_reward=reward)) is not None
    loader.rollouts.clear()
    assert [rollout.final_reward for rollout in loader.rollouts] == [0.0, 1.0]


def test_what_an_agent_does_to_its_resources_stays_with_it():
    given = {"prompt": PromptTemplate(template="one")}
    loader = DevTaskLoader(["a"], given)
    given["prompt"].template = "two"
    for _ in range(2):
        update = loader.get_latest_resources()
        assert update is not None
        prompt = update.resources["prompt"]
        assert isinstance(prompt, PromptTemplate)
        assert prompt.template == "one"
        prompt.template = "three"


def test_a_closed_loader_hands_out_nothing():
    loader = DevTaskLoader(["a"], RESOURCES)
    loader.close()
    assert loader.poll_next_task() is None


def test_threads_share_the_tasks():
    loader = DevTaskLoader(list(range(1000)), RESOURCES)
    seen: list[Any] = []

    def work() -> None:
        while (task := loader.poll_next_task()) is not None:
            seen.append(task.input)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == list(range(1000))


@pytest.mark.parametrize("tasks", [[], (), "abc"])
def test_without_tasks_it_is_refused(tasks: Any):
    with pytest.raises(DatasetError, match="at least one task"):
        DevTaskLoader(tasks, RESOURCES)


def test_what_is_no_resource_is_refused():
    with pytest.raises(ValidationError, match="resource_type"):
        DevTaskLoader(["a"], {"main_llm": {"model": "small"}})  # pyright: ignore[reportArgumentType]


def test_it_takes_what_a_client_takes():
    loader = DevTaskLoader(["a"], RESOURCES, poll_interval=1.0, timeout=2.0)
    assert isinstance(loader, AgentLightningClient)
    assert (loader.poll_interval, loader.timeout) == (1.0, 2.0)
    with pytest.raises(ConfigurationError, match="timeout"):
        DevTaskLoader(["a"], RESOURCES, timeout=0)
    with pytest.raises(TypeError, match="speed"):
        DevTaskLoader(["a"], RESOURCES, speed=1)


def test_it_can_be_pickled_with_the_tasks_that_are_left():
    loader = DevTaskLoader(["a", "b"], RESOURCES)
    loader.poll_next_task()
    task = pickle.loads(pickle.dumps(loader)).poll_next_task()
    assert task is not None
    assert task.input == "b"
