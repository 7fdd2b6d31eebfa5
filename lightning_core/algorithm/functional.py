"""``@algo``: an algorithm from a function."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from lightning_core.algorithm.base import BaseAlgorithm, Need
from lightning_core.errors import ConfigurationError
from lightning_core.types import Dataset, NamedResources, Resource

__all__ = ["FunctionalAlgorithm", "algo"]

P = ParamSpec("P")
R = TypeVar("R")

_GIVEN = (
    "store",
    "train_dataset",
    "val_dataset",
    "adapter",
    "llm_proxy",
    "initial_resources",
    "trainer",
    "algorithm",
)


class FunctionalAlgorithm(BaseAlgorithm, Generic[P, R]):
    """An algorithm made of a function, which stays callable as it was; see :func:`algo`."""

    def __init__(self, function: Callable[P, R], needs: Need | Iterable[Need] = ()) -> None:
        functools.update_wrapper(self, function)
        self.needs: frozenset[Need] = frozenset([needs] if isinstance(needs, str) else needs)
        self._function = function
        self._wanted: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self._wanted = list(_GIVEN)
            elif name in _GIVEN and parameter.kind is not parameter.POSITIONAL_ONLY:
                self._wanted.append(name)
            elif parameter.default is parameter.empty:
                near = difflib.get_close_matches(name, _GIVEN, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigurationError(
                    f"@algo {getattr(function, '__qualname__', function)!s}: nobody gives the parameter {name!r}; "
                    f"{hint}An algorithm may take {', '.join(_GIVEN)}"
                )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself."""
        return self._function(*args, **kwargs)

    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self._function)

    def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None) -> Any:
        """Call the function with what it asks for; resources that it returns become the best ones."""
        givers: dict[str, Callable[[], Any]] = {
            "store": self.get_store,
            "train_dataset": lambda: train_dataset,
            "val_dataset": lambda: val_dataset,
            "adapter": self.get_adapter,
            "llm_proxy": self.get_llm_proxy,
            "initial_resources": self.get_initial_resources,
            "trainer": self.get_trainer,
            "algorithm": lambda: self,
        }
        keywords = {name: givers[name]() for name in self._wanted}
        result: Any = self._function(**keywords)  # pyright: ignore[reportCallIssue] - the signature was checked above
        if inspect.isawaitable(result):
            return self._finish(result)
        self._keep(result)
        return None

    async def _finish(self, result: Any) -> None:
        self._keep(await result)

    def _keep(self, result: Any) -> None:
        if result is None:
            return
        values = cast("dict[str, Any]", result).values() if isinstance(result, dict) else [result]
        if not isinstance(result, dict) or not all(isinstance(value, Resource) for value in values):
            raise ConfigurationError(
                f"@algo {getattr(self, '__name__', '')} returned a {type(result).__name__}; return the best "  # pyright: ignore[reportUnknownArgumentType] - any result
                "resources as a dict of names to resources, or None"
            )
        self.best_resources = cast("NamedResources", result)


@overload
def algo(function: Callable[P, R]) -> FunctionalAlgorithm[P, R]: ...
@overload
def algo(
    function: None = None, *, needs: Need | Iterable[Need] = ()
) -> Callable[[Callable[P, R]], FunctionalAlgorithm[P, R]]: ...
def algo(function: Callable[..., Any] | None = None, *, needs: Need | Iterable[Need] = ()) -> Any:
    """Make an algorithm from a function, sync or async.

    The function takes, by name, any of ``store``, ``train_dataset``, ``val_dataset``, ``adapter``, ``llm_proxy``,
    ``initial_resources``, ``trainer`` and ``algorithm`` (the algorithm itself, for ``log_metrics``). It may return the
    best resources. A sync function runs in a thread of its own, and reaches the store through
    ``lightning_core.bridge.run_sync``::

        @algo
        async def every_task_once(*, store, train_dataset):
            for task in train_dataset:
                await store.enqueue_rollout(task, mode="train")

    When a run is resumed, the function is called from its start and gets the rollouts that it has had already. One
    that does much besides can skip what is done::

        @algo
        async def in_epochs(*, algorithm, store, train_dataset):
            state = algorithm.resumed_state or {"epoch": 0}
            for epoch in range(state["epoch"], 10):
                ...
                await algorithm.checkpoint({"epoch": epoch + 1})

    Args:
        function: The function. Without it, a decorator is returned: ``@algo(needs={"rewards"})``.
        needs: What it cannot learn without; see :attr:`BaseAlgorithm.needs`.

    Raises:
        ConfigurationError: If the function asks for something that nobody gives.
    """
    if function is None:
        return functools.partial(FunctionalAlgorithm, needs=needs)
    return FunctionalAlgorithm(function, needs)
