"""Agents from functions: the decorators, and how a signature tells what a function needs."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from lightning_core.errors import NoResourcesError
from lightning_core.types import (
    LLM,
    NamedResources,
    PromptTemplate,
    Resource,
    RolloutRawResultV2,
    RolloutV2,
)

from .agent import LitAgent
from .selection import attributed, choose

__all__ = ["FunctionalLitAgent", "llm_rollout", "prompt_rollout", "rollout"]

P = ParamSpec("P")
R = TypeVar("R")
Role = Literal["llm", "prompt_template", "resources", "rollout"]

_logger = logging.getLogger(__name__)

_ROLES: tuple[Role, ...] = ("llm", "prompt_template", "resources", "rollout")
_KINDS: dict[Role, type[Resource]] = {"llm": LLM, "prompt_template": PromptTemplate}
_ACCEPTED = """\
    (task, llm[, rollout])
    (task, prompt_template[, rollout])
    (task, prompt_template, llm[, rollout])
    (task, resources[, rollout])
after task in any order, and sync or async; other parameters need a default"""


class FunctionalLitAgent(LitAgent[Any], Generic[P, R]):
    """An agent that is a function; made by :func:`rollout`, :func:`llm_rollout` or :func:`prompt_rollout`.

    Calling it calls the function. As an agent, it takes what the function needs out of the named resources:
    the resource of the right kind. Where there are several, it takes the one that has the name of the
    parameter (``llm``, ``prompt_template``), else the first, and logs a warning that says which.

    Args:
        func: The function.
        strip_proxy: Give the function a plain ``LLM`` in place of a ``ProxyLLM``, with the rollout and the
            attempt ids baked into its endpoint.
        primary: What the second parameter is, whatever its name; a third one is then the rollout.

    Raises:
        NotImplementedError: If the signature is none that an agent may have.
    """

    def __init__(
        self,
        func: Callable[P, R],
        *,
        strip_proxy: bool = True,
        primary: Literal["llm", "prompt_template"] | None = None,
    ) -> None:
        super().__init__()
        self._func = func
        self._strip_proxy = strip_proxy
        self._primary: Literal["llm", "prompt_template"] | None = primary
        self._roles = _read_signature(func, primary)
        self._async = _is_coroutine_function(func)
        self._warned: set[Role] = set()
        functools.update_wrapper(self, func)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function as it was written."""
        return self._func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<FunctionalLitAgent {self._label.removeprefix('agent ')}>"

    def __reduce__(self) -> Any:
        """Pickle by reference, as functions are: the other process imports the module."""
        found = _lookup(self._func)
        if found is self:
            return self._func.__qualname__
        if found is self._func:
            return self.by_value()
        from pickle import PicklingError

        raise PicklingError(
            f"{self._label} cannot be sent to another process: its function is not at the top of a module"
        )

    def by_value(self) -> Any:
        """Return how to make this agent of its function, for a pickler that can send functions as they are."""
        return _rebuild, (self._func, self._strip_proxy, self._primary)

    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return self._async

    def training_rollout(
        self, task: Any, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one task, whatever its mode.

        Raises:
            NotImplementedError: If the function is async.
            NoResourcesError: If the resources lack a kind that the function needs.
        """
        if self._async:
            raise NotImplementedError(
                f"{self._label} is async: await rollout_async instead of calling rollout"
            )
        return cast("RolloutRawResultV2", self._invoke(task, resources, rollout))

    async def training_rollout_async(
        self, task: Any, resources: NamedResources, rollout: RolloutV2
    ) -> RolloutRawResultV2:
        """Run one task, whatever its mode; a sync function runs in a thread.

        Raises:
            NoResourcesError: If the resources lack a kind that the function needs.
        """
        if not self._async:
            return await super().training_rollout_async(task, resources, rollout)
        return await self._invoke(task, resources, rollout)

    def _invoke(self, task: Any, resources: NamedResources, rollout: RolloutV2) -> Any:
        positional: list[Any] = [task]
        keywords: dict[str, Any] = {}
        for name, role, by_position in self._roles:
            value = self._value(role, name, resources, rollout)
            if by_position:
                positional.append(value)
            else:
                keywords[name] = value
        return cast("Callable[..., Any]", self._func)(*positional, **keywords)

    def _value(self, role: Role, name: str, resources: NamedResources, rollout: RolloutV2) -> Any:
        if role == "rollout":
            return rollout
        if role == "resources":
            if not self._strip_proxy:
                return resources
            return {key: attributed(resource, rollout, self._label) for key, resource in resources.items()}
        resource = self._find(role, name, resources)
        return attributed(resource, rollout, self._label) if self._strip_proxy else resource

    def taken(self, resources: NamedResources) -> set[str]:
        """Return the names of those resources that the function is given."""
        if any(role == "resources" for _, role, _ in self._roles):
            return set(resources)
        given = [self._find(role, name, resources) for name, role, _ in self._roles if role in _KINDS]
        return {name for name, resource in resources.items() if any(resource is one for one in given)}

    def _find(self, role: Role, name: str, resources: NamedResources) -> Resource:
        kind = _KINDS[role]
        chosen, fitting = choose(resources, kind, name, role)
        if chosen is None:
            there = ", ".join(f"{key} ({type(value).__name__})" for key, value in resources.items())
            raise NoResourcesError(
                f"{self._label} needs a resource of kind {kind.__name__} for its parameter {name!r}; "
                f"the resources hold: {there or 'nothing'}. Give Trainer(initial_resources=...) or choose an "
                "algorithm that provides it"
            )
        if len(fitting) > 1 and chosen not in (name, role) and role not in self._warned:
            self._warned.add(role)
            _logger.warning(
                "%s: %d resources fit the parameter %r (%s); taking the first, %r. Name one %r to choose",
                *(self._label, len(fitting), name, ", ".join(fitting), chosen, name),
            )
        return resources[chosen]


def rollout(func: Callable[P, R]) -> FunctionalLitAgent[P, R]:
    """Make an agent of a function; the names of its parameters say what it needs.

    Args:
        func: ``(task, llm[, rollout])``, ``(task, prompt_template[, rollout])``, both resources together in
            any order, or ``(task, resources[, rollout])`` for the whole dictionary. Sync or async.

    Returns:
        The agent, which can still be called as the function that it was made of.

    Raises:
        NotImplementedError: If the signature is another one; the message lists these.

    Example::

        @rollout
        async def solve(task, prompt_template, llm):
            client = openai.AsyncOpenAI(base_url=llm.get_base_url(), api_key=llm.api_key)
            ...
            return 1.0 if answer == task["answer"] else 0.0
    """
    return FunctionalLitAgent(func)


@overload
def llm_rollout(func: Callable[P, R], *, strip_proxy: bool = True) -> FunctionalLitAgent[P, R]: ...
@overload
def llm_rollout(
    func: None = None, *, strip_proxy: bool = True
) -> Callable[[Callable[P, R]], FunctionalLitAgent[P, R]]: ...
def llm_rollout(func: Callable[..., Any] | None = None, *, strip_proxy: bool = True) -> Any:
    """Make an agent of a function ``(task, llm[, rollout])``, sync or async.

    Args:
        func: The function. Without it, a decorator is returned: ``@llm_rollout(strip_proxy=False)``.
        strip_proxy: Turn a ``ProxyLLM`` into a plain ``LLM`` whose endpoint knows rollout and attempt.

    Raises:
        NotImplementedError: If the signature is another one.
    """
    if func is None:
        return functools.partial(llm_rollout, strip_proxy=strip_proxy)
    return FunctionalLitAgent(func, strip_proxy=strip_proxy, primary="llm")


@overload
def prompt_rollout(func: Callable[P, R]) -> FunctionalLitAgent[P, R]: ...
@overload
def prompt_rollout(func: None = None) -> Callable[[Callable[P, R]], FunctionalLitAgent[P, R]]: ...
def prompt_rollout(func: Callable[..., Any] | None = None) -> Any:
    """Make an agent of a function ``(task, prompt_template[, rollout])``, sync or async.

    Raises:
        NotImplementedError: If the signature is another one.
    """
    if func is None:
        return prompt_rollout
    return FunctionalLitAgent(func, primary="prompt_template")


def _read_signature(
    func: Callable[..., Any], primary: Literal["llm", "prompt_template"] | None
) -> list[tuple[str, Role, bool]]:
    """Return (parameter, what to pass, whether by position) for every parameter after the task."""
    try:
        task, *others = inspect.signature(func).parameters.values()
    except (ValueError, TypeError):
        raise _unknown(func) from None
    if task.kind not in (task.POSITIONAL_ONLY, task.POSITIONAL_OR_KEYWORD) or task.name in _ROLES:
        raise _unknown(func)
    roles: list[tuple[str, Role, bool]] = []
    for position, parameter in enumerate(others, start=1):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in _ROLES:
            role: Role = parameter.name
        elif parameter.default is not parameter.empty:
            continue
        elif primary is not None and position <= 2:
            role = primary if position == 1 else "rollout"
        else:
            raise _unknown(func)
        roles.append((parameter.name, role, parameter.kind is parameter.POSITIONAL_ONLY))
    found = {role for _, role, _ in roles}
    if len(found) < len(roles) or not found - {"rollout"} or (primary is not None and primary not in found):
        raise _unknown(func)
    return roles


def _unknown(func: Callable[..., Any]) -> NotImplementedError:
    name = getattr(func, "__qualname__", repr(func))
    hint = ""
    try:
        signature = inspect.signature(func)
    except (ValueError, TypeError):
        signature = " without a readable signature"
    else:
        for parameter in (name for name in signature.parameters if name not in _ROLES):
            near = difflib.get_close_matches(parameter, _ROLES, n=1)
            if near:
                hint = f" For {parameter!r}, did you mean {near[0]!r}?"
                break
    return NotImplementedError(
        f"{name}{signature} cannot be an agent.{hint} Accepted signatures:\n{_ACCEPTED}"
    )


def _is_coroutine_function(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(func.__call__)


def _lookup(func: Callable[..., Any]) -> Any:
    """Return what the module of ``func`` holds under its name."""
    found: Any = sys.modules.get(getattr(func, "__module__", None) or "")
    for part in getattr(func, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found


def _rebuild(
    func: Callable[..., Any], strip_proxy: bool, primary: Literal["llm", "prompt_template"] | None
) -> FunctionalLitAgent[..., Any]:
    return FunctionalLitAgent(func, strip_proxy=strip_proxy, primary=primary)
