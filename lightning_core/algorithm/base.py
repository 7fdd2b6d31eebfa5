"""The algorithm interface: decides what runs with which resources, and learns from it."""

from __future__ import annotations

import inspect
import json
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pydantic_core import PydanticSerializationError, to_json

from lightning_core.adapter.base import TraceAdapter
from lightning_core.errors import ConfigurationError, UnserializableValueError
from lightning_core.store.base import LightningStore
from lightning_core.types import Dataset, NamedResources, ResourcesUpdate
from lightning_core.types._model import copy_value

if TYPE_CHECKING:
    from lightning_core.trainer import Trainer

__all__ = ["NEEDS", "BaseAlgorithm", "FastAlgorithm", "Need"]

Need = Literal["rewards", "llm_calls", "token_ids", "logprobs"]
"""What an algorithm may need of a trace: a reward; a call of a language model; the ids of the tokens of prompt and
response as the engine gave them; the log-probabilities of the sampled tokens."""
NEEDS: Final[tuple[Need, ...]] = get_args(Need)
"""All needs."""


class BaseAlgorithm(ABC):
    """Puts rollouts into the store, reads what became of them, and improves the resources.

    The trainer hands over its parts before :meth:`run`. What is to be reported goes through :meth:`log_metrics` and
    :attr:`best_resources`, and is found again in the ``TrainingResult``.
    """

    needs: frozenset[Need] = frozenset()
    """What the algorithm cannot learn without. ``Trainer.fit`` looks at the first training rollouts that succeed, and
    ends the run with a ``CaptureError`` if none of them holds it."""

    needs_within: int = 3
    """How many rollouts it looks at before it gives up; more for what an agent may give only now and then."""

    best_resources: NamedResources | None = None
    """The best resources found so far."""

    resumed_state: dict[str, Any] | None = None
    """The state from which this run goes on: that of its last checkpoint. ``None`` if it begins at the beginning."""

    _trainer_ref: weakref.ref[Trainer] | None = None
    _store: LightningStore | None = None
    _run_id: str | None = None
    _adapter: TraceAdapter[Any] | None = None
    _llm_proxy: Any = None
    _initial_resources: NamedResources | None = None
    _metrics: list[dict[str, Any]] | None = None

    @abstractmethod
    def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> Awaitable[None] | None:
        """Run to the end. May be a plain or an async method."""

    def is_async(self) -> bool:
        """Whether :meth:`run` is a coroutine function. A plain one is run in a thread of its own."""
        return inspect.iscoroutinefunction(self.run)

    # What the trainer hands over

    def set_trainer(self, trainer: Trainer) -> None:
        """Remember the trainer, without keeping it alive."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Trainer:
        """Return the trainer.

        Raises:
            ConfigurationError: If there is none.
        """
        trainer = self._trainer_ref() if self._trainer_ref is not None else None
        if trainer is None:
            raise ConfigurationError(f"{type(self).__name__} has no trainer; it is set by Trainer.fit")
        return trainer

    def set_store(self, store: LightningStore) -> None:
        """Set the store to work with."""
        self._store = store

    def get_store(self) -> LightningStore:
        """Return the store.

        Raises:
            ConfigurationError: If there is none.
        """
        if self._store is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no store; it is set by Trainer.fit, or set_store"
            )
        return self._store

    def set_run_id(self, run_id: str | None) -> None:
        """Set the run whose checkpoints :meth:`checkpoint` stores."""
        self._run_id = run_id

    def set_adapter(self, adapter: TraceAdapter[Any] | None) -> None:
        """Set the adapter that turns spans into training data."""
        self._adapter = adapter

    def get_adapter(self) -> TraceAdapter[Any]:
        """Return the adapter.

        Raises:
            ConfigurationError: If none was chosen and none is installed.
        """
        if self._adapter is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs an adapter, and none was chosen. "
                "pip install lightning-adapter-triplet, or give Trainer(adapter=...)"
            )
        return self._adapter

    def set_llm_proxy(self, llm_proxy: Any) -> None:
        """Set the LLM proxy, or ``None``."""
        self._llm_proxy = llm_proxy

    def get_llm_proxy(self) -> Any:
        """Return the LLM proxy, or ``None``."""
        return self._llm_proxy

    def set_initial_resources(self, resources: NamedResources | None) -> None:
        """Set the resources that the user starts from."""
        self._initial_resources = resources

    def get_initial_resources(self) -> NamedResources | None:
        """Return the resources that the user starts from, or ``None``."""
        return self._initial_resources

    # What the algorithm reports

    def log_metrics(self, **metrics: Any) -> None:
        """Add one entry, with the time in seconds since the epoch, to the metrics history.

        Values must be such as JSON holds. Numpy scalars and the like become plain numbers; NaN and infinity, which
        JSON cannot say, become ``None``.

        Raises:
            UnserializableValueError: If a value is something else. This is a ``TypeError``.
        """
        # Checked here, where it can be put right: at the end of the run it would cost the whole result.
        plain = {name: _plain(name, value) for name, value in metrics.items()}
        if self._metrics is None:
            self._metrics = []
        self._metrics.append({"time": time.time(), **plain})

    @property
    def metrics_history(self) -> list[dict[str, Any]]:
        """What was logged so far, oldest first."""
        return list(self._metrics or [])

    def reset(self) -> None:
        """Forget metrics, best resources and state, so that the same object can serve another ``fit``."""
        self._metrics = None
        self._run_id = None
        self.best_resources = None
        self.resumed_state = None

    def adopt(self, best_resources: NamedResources | None, metrics: list[dict[str, Any]]) -> None:
        """Take over what a copy of this algorithm has found in another process."""
        self.best_resources = best_resources
        self._metrics = list(metrics)

    # Going on after a crash

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on from here: JSON values. Nothing, unless overridden.

        What is drawn at random needs the state of its generator, and what is held by id, such as resources, the ids.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - without state there is nothing to load
        """Take up the state of a checkpoint, before :meth:`run`. Does nothing unless overridden."""

    async def checkpoint(self, state: dict[str, Any] | None = None) -> None:
        """Store where the algorithm is, so that a resumed run goes on from here.

        With the state go the metrics and the best resources. What was logged later is logged again by the resumed
        run, which finds finished rollouts of the time since as they are (see :meth:`Trainer.fit`). Call it between
        steps, when nothing that the step has enqueued is still to be waited for. A sync algorithm calls
        ``run_sync(self.checkpoint())``, with ``lightning_core.bridge.run_sync``.

        An algorithm without a trainer has no run, and nothing is stored.

        Args:
            state: The state; ``None`` for that of :meth:`state_dict`.

        Raises:
            ConfigurationError: If there is no state. An algorithm without one needs no checkpoint: a resumed run
                starts it from its beginning.
            UnserializableValueError: If the state is more than JSON holds. This is a ``TypeError``.
        """
        state = self.state_dict() if state is None else state
        name = type(self).__name__
        if not state:
            raise ConfigurationError(
                f"{name} has no state for a checkpoint: override state_dict and load_state_dict, or call "
                "checkpoint(state) and look at resumed_state when the run begins"
            )
        try:
            plain = json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UnserializableValueError(
                f"the state of {name} is more than JSON can hold: {error}"
            ) from error
        if plain != state:
            raise UnserializableValueError(
                f"the state of {name} would not come back from JSON as it is: use dicts with string keys, lists, "
                "strings, numbers, bools and None"
            )
        if self._run_id is None:
            return
        best = self.best_resources
        saved = None if best is None else {key: value.model_dump(mode="json") for key, value in best.items()}
        await self.get_store().save_run_state(
            self._run_id, {"state": plain, "metrics": self.metrics_history, "best_resources": saved}
        )

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what :meth:`checkpoint` has stored: metrics, best resources and state."""
        state = saved.get("state")
        if state is None:
            return
        self._metrics = list(saved["metrics"])
        best = saved["best_resources"]
        if best is not None:
            self.best_resources = ResourcesUpdate(resources_id="", resources=best).resources
        self.resumed_state = state
        self.load_state_dict(copy_value(state))


class FastAlgorithm(BaseAlgorithm, ABC):
    """An algorithm that is quick and needs no special hardware, such as ``Trainer.dev`` asks for."""


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(to_json(value, fallback=_number, inf_nan_mode="null"))
    except (PydanticSerializationError, TypeError, ValueError) as error:
        raise UnserializableValueError(
            f"metric {name!r} is of type {type(value).__name__}, which JSON cannot hold: {error}"
        ) from error


def _number(value: Any) -> Any:
    """Numpy scalars and tensors of one number, known by what they can do."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"a {type(value).__name__} is no number, text, list or dict")
