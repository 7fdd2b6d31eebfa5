"""``LitAgent``: the base class of agents, and how it finds the worker that runs it."""

from __future__ import annotations

import difflib
import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lightning_core.errors import ConfigurationError
from lightning_core.types import NamedResources, Rollout, RolloutRawResultV2, RolloutV2, Task

if TYPE_CHECKING:
    from lightning_core.runner.base import BaseRunner
    from lightning_core.tracer.base import BaseTracer
    from lightning_core.trainer import Trainer

__all__ = [
    "LitAgent",
    "call_deprecated_end",
    "call_deprecated_start",
    "call_rollout",
    "is_v0_1_rollout_api",
]

T = TypeVar("T")

_METHODS = ("rollout", "training_rollout", "rollout_async", "training_rollout_async")

# Which runner runs which agent in this context: id(agent) -> (agent, runner), both weak. A context, and not
# an attribute of the agent, because several workers of one process share the agent object; and not a
# thread-local, because a runner moves sync agents to threads of their own, which inherit the context. The
# mapping is replaced, never changed: contexts that were copied earlier keep the one they have.
_Entry = tuple["weakref.ref[LitAgent[Any]]", "weakref.ref[BaseRunner[Any]]"]
_runners_here: ContextVar[Mapping[int, _Entry] | None] = ContextVar("lightning_runners", default=None)
_lock = threading.Lock()


class LitAgent(Generic[T]):
    """Base class of agents: says what to do with one task, and knows nothing of training or of the store.

    Implement one of these, sync or async (``..._async``):

    * :meth:`rollout`, which serves every task;
    * :meth:`training_rollout`, and :meth:`validation_rollout` if validation and test tasks need another way.

    An async agent runs on the runner's event loop, a sync one in a thread of its own. For an agent that is
    one function, the decorator :func:`lightning_core.rollout` is shorter.

    Methods of the v0.1 form, ``(task, rollout_id, resources)``, are called as they want it; they are deprecated.

    References back to the trainer and the runner are weak, and the runner is that of the worker in whose
    context the agent runs: workers that share the agent object in one process each see their own.

    Args:
        trained_agents: Deprecated. Configure the agent matching of the adapter instead.
    """

    trained_agents: str | None = None
    _trainer_ref: weakref.ref[Trainer] | None = None
    _runner_refs: tuple[weakref.ref[BaseRunner[Any]], ...] = ()

    def __init__(self, *, trained_agents: str | None = None) -> None:
        if trained_agents is not None:
            warnings.warn(
                "LitAgent(trained_agents=...) is deprecated; configure the adapter instead: "
                'Trainer(adapter={"type": "triplet", "agent_match": ...})',
                DeprecationWarning,
                stacklevel=2,
            )
            self.trained_agents = trained_agents

    def __getstate__(self) -> dict[str, Any]:
        """Leave references to trainer and runner out of copies and pickles: they belong to this process."""
        here = {"_trainer_ref", "_runner_refs"}
        return {key: value for key, value in vars(self).items() if key not in here}

    def is_async(self) -> bool:
        """Whether the agent implements an async rollout method; override it to decide otherwise."""
        return any(
            self._implements(name)
            for name in ("rollout_async", "training_rollout_async", "validation_rollout_async")
        )

    # Trainer, runner and tracer

    def set_trainer(self, trainer: Trainer) -> None:
        """Remember the trainer, without keeping it alive."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Trainer:
        """Return the trainer.

        Raises:
            ConfigurationError: If none was set in this process, or it is gone.
        """
        if self._trainer_ref is None:
            raise ConfigurationError(f"{self._label} has no trainer; Trainer.fit sets it, in its own process")
        trainer = self._trainer_ref()
        if trainer is None:
            raise ConfigurationError(f"the trainer of {self._label} is gone; keep a reference to it")
        return trainer

    @property
    def trainer(self) -> Trainer:
        """Short for :meth:`get_trainer`."""
        return self.get_trainer()

    def set_runner(self, runner: BaseRunner[T]) -> None:
        """Remember the runner of the current worker, without keeping it alive.

        It holds for the current :mod:`contextvars` context and those copied from it later: the tasks and
        worker threads that the runner starts.
        """
        ref: weakref.ref[BaseRunner[Any]] = weakref.ref(runner)
        here = _runners_here.get() or {}
        entry = here.get(id(self))
        if entry is not None and entry[0]() is self and entry[1]() is runner:
            return
        living = {key: entry for key, entry in here.items() if entry[0]() is not None}
        _runners_here.set({**living, id(self): (weakref.ref(self), ref)})
        with _lock:
            known = (known for known in self._runner_refs if known() not in (None, runner))
            self._runner_refs = (*known, ref)

    def get_runner(self) -> BaseRunner[T]:
        """Return the runner of the worker in whose context this is called.

        Outside such a context, for instance in a thread that the agent started by itself, it is the agent's
        only runner in this process, if there is just one.

        Raises:
            ConfigurationError: If no runner was set here, it is gone, or several could be meant.
        """
        entry = (_runners_here.get() or {}).get(id(self))
        if entry is not None and entry[0]() is self:
            runner = entry[1]()
            if runner is None:
                raise ConfigurationError(f"the runner of {self._label} is gone; its worker has ended")
            return runner
        living = [runner for ref in self._runner_refs if (runner := ref()) is not None]
        if not living:
            raise ConfigurationError(f"{self._label} has no runner here; a runner sets it in its own worker")
        if len(living) > 1:
            raise ConfigurationError(
                f"{self._label} has {len(living)} runners in this process, and this thread was started "
                "outside of all of them; start it with contextvars.copy_context().run, or pass the runner on"
            )
        return living[0]

    @property
    def runner(self) -> BaseRunner[T]:
        """Short for :meth:`get_runner`."""
        return self.get_runner()

    def get_tracer(self) -> BaseTracer:
        """Return the tracer of the current worker's runner.

        Raises:
            ConfigurationError: If there is no runner here, or it has no tracer.
        """
        runner = self.get_runner()
        tracer: BaseTracer | None = getattr(runner, "tracer", None)
        if tracer is None:
            raise ConfigurationError(f"the runner of {self._label}, {type(runner).__name__}, has no tracer")
        return tracer

    @property
    def tracer(self) -> BaseTracer:
        """Short for :meth:`get_tracer`."""
        return self.get_tracer()

    # What an agent implements

    def rollout(self, task: T, resources: NamedResources, rollout: RolloutV2) -> RolloutRawResultV2:
        """Run one task, by default as a validation task if its mode is val or test, else as a training task.

        Args:
            task: One item of the dataset.
            resources: What the algorithm provides, such as model endpoints and prompt templates, by name.
            rollout: The live rollout, with its mode, ids and attempt. Do not change it.

        Returns:
            ``None`` if the spans that were recorded tell it all, the reward as a number, or a list of spans.

        Raises:
            NotImplementedError: If the agent implements no sync method.
        """
        method = self.validation_rollout if _validates(rollout) else self.training_rollout
        return call_rollout(method, task, resources, rollout)

    async def rollout_async(
        self, task: T, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one task; the async form of :meth:`rollout`. An agent that is sync throughout runs in a thread.

        Args:
            task: One item of the dataset.
            resources: What the algorithm provides, by name.
            rollout: The live rollout. Do not change it.

        Returns:
            ``None``, the reward as a number, or a list of spans.

        Raises:
            NotImplementedError: If the agent implements no method at all.
        """
        if self._implements("rollout") and not self.is_async():
            return await _in_thread(call_rollout, self.rollout, task, resources, rollout)
        method = self.validation_rollout_async if _validates(rollout) else self.training_rollout_async
        return await call_rollout(method, task, resources, rollout)

    def training_rollout(self, task: T, resources: NamedResources, rollout: RolloutV2) -> RolloutRawResultV2:
        """Run one training task; arguments and result are those of :meth:`rollout`.

        Raises:
            NotImplementedError: Unless overridden.
        """
        if self.is_async():
            raise NotImplementedError(
                f"{self._label} is async: await rollout_async instead of calling rollout"
            )
        near = [
            name for name in vars(type(self)) if difflib.get_close_matches(name, _METHODS, n=1, cutoff=0.8)
        ]
        hint = f"it has {near[0]!r}; " if near else ""
        raise NotImplementedError(
            f"{self._label} implements no rollout method; {hint}override rollout or training_rollout, or "
            "rollout_async or training_rollout_async"
        )

    async def training_rollout_async(
        self, task: T, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one training task; arguments and result are those of :meth:`rollout`.

        By default it runs :meth:`training_rollout` in a thread.
        """
        return await _in_thread(call_rollout, self.training_rollout, task, resources, rollout)

    def validation_rollout(
        self, task: T, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one validation or test task: by default, as :meth:`training_rollout` does."""
        return call_rollout(self.training_rollout, task, resources, rollout)

    async def validation_rollout_async(
        self, task: T, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one validation or test task: by default, as :meth:`training_rollout_async` does.

        If only the sync :meth:`validation_rollout` is implemented, that runs in a thread.
        """
        if self._implements("validation_rollout"):
            return await _in_thread(call_rollout, self.validation_rollout, task, resources, rollout)
        return await call_rollout(self.training_rollout_async, task, resources, rollout)

    # Deprecated

    def on_rollout_start(self, task: Task, runner: BaseRunner[T], tracer: BaseTracer) -> None:
        """Called before a rollout begins. Deprecated: use ``Hook.on_rollout_start``."""

    def on_rollout_end(
        self, task: Task, rollout: RolloutV2, runner: BaseRunner[T], tracer: BaseTracer
    ) -> None:
        """Called after a rollout has ended. Deprecated: use ``Hook.on_rollout_end``."""

    @property
    def _label(self) -> str:
        return f"agent {getattr(self, '__name__', type(self).__name__)}"

    def _implements(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(LitAgent, name)


def is_v0_1_rollout_api(func: Callable[..., Any]) -> bool:
    """Whether a rollout method is of v0.1, ``(task, rollout_id, resources)``: it has a ``rollout_id``."""
    return "rollout_id" in inspect.signature(func).parameters


def call_rollout(method: Callable[..., Any], task: Any, resources: NamedResources, rollout: RolloutV2) -> Any:
    """Call a rollout method of an agent, of today's form or of v0.1's. For runners.

    A method of v0.1 has a ``rollout_id`` in place of the rollout, before the resources or after them. It causes a
    ``DeprecationWarning``, once for each method.

    Returns:
        What the method returns; the coroutine of one that is async.
    """
    place = _place_of_rollout_id(getattr(method, "__func__", method), hasattr(method, "__self__"))
    if place is None:
        return method(task, resources, rollout)
    arguments = [task, resources]
    arguments.insert(place, rollout.rollout_id)
    return method(*arguments)


async def call_deprecated_start(
    agent: LitAgent[Any], rollout: RolloutV2 | Task, runner: BaseRunner[Any], tracer: BaseTracer
) -> None:
    """Call the agent's deprecated ``on_rollout_start`` if it has one. For runners.

    Warns with a ``DeprecationWarning``, once for each class of agents.
    """
    if _overrides_deprecated(type(agent), "on_rollout_start"):
        task = rollout if isinstance(rollout, Task) else _as_task(rollout)
        await _maybe_await(agent.on_rollout_start(task, runner, tracer))


async def call_deprecated_end(
    agent: LitAgent[Any], rollout: RolloutV2 | Rollout, runner: BaseRunner[Any], tracer: BaseTracer
) -> None:
    """Call the agent's deprecated ``on_rollout_end`` if it has one, with the rollout in the runner's form. For runners.

    Warns with a ``DeprecationWarning``, once for each class of agents.
    """
    if _overrides_deprecated(type(agent), "on_rollout_end"):
        task = rollout.task if isinstance(rollout, Rollout) else _as_task(rollout)
        end: Callable[..., Any] = agent.on_rollout_end
        await _maybe_await(end(task, rollout, runner, tracer))


@lru_cache(maxsize=256)
def _overrides_deprecated(cls: type[LitAgent[Any]], name: str) -> bool:
    if getattr(cls, name) is getattr(LitAgent, name):
        return False
    # The cache makes this the only call for this class.
    warnings.warn(
        f"{cls.__name__}.{name} is deprecated; write a Hook with an async {name} for Trainer(hooks=...)",
        DeprecationWarning,
        stacklevel=3,
    )
    return True


async def _maybe_await(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    import asyncio

    return await asyncio.to_thread(function, *arguments)


def _as_task(rollout: RolloutV2) -> Task:
    return Task(
        rollout_id=rollout.rollout_id,
        input=rollout.input,
        mode=rollout.mode,
        resources_id=rollout.resources_id,
        create_time=rollout.start_time,
        metadata=rollout.metadata,
    )


def _validates(rollout: RolloutV2) -> bool:
    return rollout.mode == "val" or rollout.mode == "test"


@lru_cache(maxsize=256)
def _place_of_rollout_id(function: Callable[..., Any], bound: bool) -> int | None:
    """Which argument of a v0.1 method the ``rollout_id`` is, counted from 0; ``None`` for a method of today's form."""
    if not is_v0_1_rollout_api(function):
        return None
    name = getattr(function, "__qualname__", repr(function))
    code = getattr(function, "__code__", None)
    # Where the method is written, so that whoever runs the script that it is in gets to see it. The cache makes this
    # the only call for this method.
    warnings.warn_explicit(
        f"{name} has the v0.1 form, with a rollout_id; write (task, resources, rollout) and use rollout.rollout_id",
        DeprecationWarning,
        getattr(code, "co_filename", "<unknown>"),
        getattr(code, "co_firstlineno", 0),
        module=getattr(function, "__module__", None),
    )
    return list(inspect.signature(function).parameters).index("rollout_id") - bound
