"""The v0.1 path of ``Trainer.fit``: workers pull tasks from a server until it, an algorithm or the user ends that."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_core.errors import ConfigurationError
from lightning_core.execution.event import StopEvent
from lightning_core.execution.pickling import refuse_entered_script
from lightning_core.execution.worker import Worker
from lightning_core.trainer.arguments import check_agent, check_dataset, check_dry_run
from lightning_core.trainer.bundles import AlgorithmBundle
from lightning_core.trainer.legacy import is_server
from lightning_core.trainer.result import TrainingResult
from lightning_core.types._model import build_models

from .client import AgentLightningClient
from .crew import Crew
from .dev import DevTaskLoader
from .reports import adapter_for
from .workers import ProcessPart, ThreadPart, Work, WorkerPart

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.litagent import LitAgent
    from lightning_core.trainer import Trainer
    from lightning_core.types import RunStatus

__all__ = ["LegacyFit"]

logger = logging.getLogger(__name__)


class LegacyFit:
    """One call of ``Trainer.fit`` whose tasks come from a v0.1 server.

    ``n_runners`` workers take tasks from the client. A single one is a thread of this process, and so are all of them
    where the client is a ``DevTaskLoader`` or of another make, whose tasks are in this process. Otherwise each is a
    process of its own, which gets a copy of the client.

    Without an algorithm, workers end after ``max_rollouts`` tasks each, when the client has no more, or at Ctrl+C. With
    one, they end when it does.

    Args:
        trainer: The trainer.
        agent: The agent.
        train_data: The server's URL or a client; or a dataset for an algorithm, whose ``get_client()`` says where its
            tasks can be taken.
        val_data: A dataset for the algorithm. A server is not asked twice: it hands out its validation tasks among the
            others, and each task says its mode.
        dev_data: In place of the other two, and without the algorithm, for ``Trainer(dev=True)``.

    Attributes:
        client: Where tasks come from.

    Raises:
        ConfigurationError: If there is no client in what is given, or a URL is none.
    """

    def __init__(
        self,
        trainer: Trainer,
        agent: LitAgent[Any],
        train_data: Any,
        *,
        val_data: Any = None,
        dev_data: Any = None,
    ) -> None:
        check_agent(agent)
        self._trainer = trainer
        self._agent = agent
        self._algorithm: BaseAlgorithm | None = trainer.algorithm
        self._datasets: tuple[Any, ...] = (train_data, val_data)
        if trainer.is_dev:
            self._use_dev_data(train_data, dev_data)
        train, val = self._datasets
        self._datasets = tuple(None if is_server(each) else each for each in (train, val))
        check_dataset("train", self._datasets[0])
        check_dataset("val", self._datasets[1])
        get_client: Any = getattr(self._algorithm, "get_client", None)
        if is_server(train):
            self.client: Any = _client("dev_data" if trainer.is_dev else "train_data", train)
        elif get_client is not None:
            self.client = get_client()
        else:
            raise ConfigurationError(
                "val_data is a v0.1 server, and train_data is none; give the server as train_data: it hands out "
                "validation tasks as well"
            )
        if is_server(val) and val not in (train, self.client):
            logger.warning(
                "val_data is not asked for tasks: workers take all of them, those of validation too, from %s",
                self._place,
            )
        self._tell_what_is_not_used()

    def _use_dev_data(self, train_data: Any, dev_data: Any) -> None:
        if dev_data is not None:
            self._datasets = (dev_data, None)
        elif is_server(train_data):
            raise ConfigurationError(
                "Trainer(dev=True) does not touch train_data, which is a v0.1 server; give what to try the agent on as "
                "dev_data, such as DevTaskLoader(tasks, resources)"
            )
        if is_server(self._datasets[0]):
            self._algorithm = None
        check_dry_run(self._algorithm)

    def _tell_what_is_not_used(self) -> None:
        trainer = self._trainer
        idle = {"hooks": bool(trainer.hooks)}
        if self._algorithm is None:
            idle["engine"] = trainer.engine is not None
            idle["initial_resources"] = trainer.initial_resources is not None
            idle["llm_proxy"] = trainer.llm_proxy is not None
        names = [name for name, given in idle.items() if given]
        if names:
            logger.warning(
                "no effect on tasks of a v0.1 server, which comes with its own resources: Trainer(%s)",
                ", ".join(f"{name}=..." for name in names),
            )

    @property
    def _place(self) -> str:
        return str(getattr(self.client, "endpoint", None) or type(self.client).__name__)

    def run(self, *, daemon: bool = True) -> TrainingResult:
        """Run it to the end.

        Args:
            daemon: Whether worker processes are daemonic; see :class:`ProcessPart`.

        Returns:
            How many rollouts were posted, by how they ended, and what the algorithm came to.

        Raises:
            ExecutionError: If all workers have failed. An error of the algorithm is raised as it is.
            SystemExit: After Ctrl+C, with code 130.
        """
        # Before threads use them.
        build_models()
        trainer, algorithm = self._trainer, self._algorithm
        crew = Crew()
        start = time.time()
        workers = self._workers(daemon, crew.wake)
        try:
            bundle, main = self._prepare_algorithm(crew.wake)
            crew.run(workers, main)
        except KeyboardInterrupt:
            logger.warning("interrupted; %s", _counted(workers))
            raise SystemExit(130) from None
        finally:
            if algorithm is not None and trainer.engine is not None:
                trainer.engine.stop()
        status: RunStatus = "succeeded"
        if bundle is not None and not bundle.completed:
            status = "cancelled"
        return TrainingResult(
            run_id=f"legacy-{secrets.token_hex(6)}",
            status=status,
            best_resources=algorithm.best_resources if algorithm is not None else None,
            metrics=algorithm.metrics_history if algorithm is not None else [],
            rollouts=_counted(workers),
            store=self._place,
            start_time=start,
            end_time=time.time(),
            settings={
                "tracer": trainer.tracer_name,
                "n_runners": trainer.n_runners,
                "adapter": type(trainer.adapter).__name__ if trainer.adapter is not None else None,
                "algorithm": type(algorithm).__name__ if algorithm is not None else None,
                "client": type(self.client).__name__,
            },
        )

    def _workers(self, daemon: bool, on_end: Callable[[], None]) -> list[WorkerPart]:
        trainer, agent = self._trainer, self._agent
        agent.set_trainer(trainer)
        adapter = adapter_for(agent, trainer.adapter)
        numbers = range(trainer.n_runners)
        remote = isinstance(self.client, AgentLightningClient) and not isinstance(self.client, DevTaskLoader)
        if len(numbers) == 1 or not remote:
            work = Work(agent, self.client, trainer.tracer, adapter, trainer.max_rollouts)
            return [ThreadPart(number, work, on_end) for number in numbers]
        refuse_entered_script()
        work = Work(agent, self.client, trainer.runner_specs.tracer, adapter, trainer.max_rollouts)
        return [ProcessPart(number, work, daemon, on_end) for number in numbers]

    def _prepare_algorithm(self, on_end: Callable[[], None]) -> tuple[AlgorithmBundle | None, Worker | None]:
        trainer, algorithm = self._trainer, self._algorithm
        if algorithm is None:
            return None, None
        algorithm.reset()
        algorithm.set_trainer(trainer)
        algorithm.set_adapter(trainer.adapter)
        algorithm.set_llm_proxy(trainer.llm_proxy)
        set_client: Any = getattr(algorithm, "set_client", None)
        if set_client is not None:
            set_client(self.client)
        algorithm.set_initial_resources(trainer.start_engine())
        bundle = AlgorithmBundle(algorithm, *self._datasets)
        stop = StopEvent()
        return bundle, Worker("lightning-algorithm", lambda: bundle(trainer.store, stop), on_end)


def _client(argument: str, data: Any) -> Any:
    """Return the client of a server's URL, or the client that was given."""
    if not isinstance(data, str):
        return data
    try:
        return AgentLightningClient(data)
    except ConfigurationError as error:
        raise ConfigurationError(f"{argument}: {error}") from None


def _counted(workers: list[WorkerPart]) -> Any:
    return dict(sum((worker.rollouts for worker in workers), Counter[Any]()))
