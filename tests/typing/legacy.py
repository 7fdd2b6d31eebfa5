"""What type checkers see of the v0.1 API and of command lines; see decorators.py."""

from typing import Any, assert_type

from lightning_core import LLM, LitAgent, Trainer, rollout
from lightning_core.client import AgentLightningClient, DevTaskLoader
from lightning_core.config import lightning_cli, nullable_float, nullable_int, nullable_str
from lightning_core.runner import AgentRunner, BaseRunner
from lightning_core.server import AgentLightningServer, ServerDataStore
from lightning_core.types import NamedResources, ResourcesUpdate, Rollout, Task


class Old(LitAgent[Any]):
    def training_rollout(self, task: Any, rollout_id: str, resources: NamedResources) -> float:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return 1.0


@rollout
def new(task: str, llm: LLM) -> float:
    return 1.0


def a_client_gives_tasks_and_takes_rollouts() -> None:
    client = AgentLightningClient("http://localhost:8000", poll_interval=1.0)
    assert_type(client.poll_next_task(), Task | None)
    assert_type(client.get_latest_resources(), ResourcesUpdate | None)
    client.post_rollout(Rollout(rollout_id="rollout-1"))
    client.post_rollout("rollout-1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AgentLightningClient(port=8000)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_loader_is_a_client(resources: NamedResources) -> None:
    loader = DevTaskLoader(tasks=["a", "b"], resources=resources)
    client: AgentLightningClient = loader
    assert_type(loader.rollouts, list[Rollout])
    Trainer(n_workers=1).fit(Old(), client)
    Trainer(dev=True).fit(new, "http://localhost:8000", dev_data=loader)


async def a_server_queues_tasks_and_has_their_rollouts(resources: NamedResources) -> None:
    server = AgentLightningServer(host="127.0.0.1", port=8000, task_timeout_seconds=60.0)
    await server.start()
    assert_type(await server.update_resources(resources), str)
    rollout_id = await server.queue_task("a", mode="train")
    assert_type(rollout_id, str)
    assert_type(await server.poll_completed_rollout(rollout_id, timeout=5.0), Rollout | None)
    assert_type(await server.retrieve_completed_rollouts(), list[Rollout])
    await server.queue_task("a", mode="training")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await ServerDataStore().get_next_task(), Task | None)


def a_runner_works_for_a_client(runner: AgentRunner) -> None:
    base: BaseRunner[Any] = runner
    assert_type(runner.iter(), int)
    assert_type(runner.run(), bool)
    assert base


class Settings:
    def __init__(self, rate: float = 0.1) -> None: ...


def a_command_line_makes_what_it_is_given() -> None:
    assert_type(lightning_cli(Settings), Settings)
    assert_type(lightning_cli(Settings, Trainer), tuple[Settings, Trainer])
    assert_type(nullable_int("5"), int | None)
    assert_type(nullable_float("none"), float | None)
    assert_type(nullable_str("text"), str | None)
