"""Checks of what a trainer is given, with errors that say what to do."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning_core import plugin
from lightning_core.errors import ConfigurationError, DatasetError
from lightning_core.litagent.agent import LitAgent
from lightning_core.types import Hook, NamedResources, Resource

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm

__all__ = [
    "check_agent",
    "check_count",
    "check_dataset",
    "check_dry_run",
    "check_needs",
    "check_resources",
    "deprecated",
    "describe",
    "refuse_unknown",
    "renamed",
    "resolve_hooks",
]


def refuse_unknown(unknown: Mapping[str, Any], constructor: Callable[..., Any]) -> None:
    """Refuse keywords that ``constructor`` does not have, and name the nearest that it has."""
    if not unknown:
        return
    known = [name for name in inspect.signature(constructor).parameters if name not in ("self", "unknown")]
    lines: list[str] = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        lines.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise ConfigurationError(f"Trainer has no argument {', '.join(lines)}; it takes {', '.join(known)}")


def deprecated(old: str, new: str, *, above: int = 2) -> None:
    """Warn that a keyword is deprecated.

    Args:
        old: The keyword.
        new: What to use.
        above: How many calls above this one the user's code is.
    """
    warnings.warn(f"Trainer's {old} is deprecated; use {new}", DeprecationWarning, stacklevel=above + 1)


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """Return the value of a keyword that has a deprecated name too, and refuse both at once."""
    if old_value is None:
        return new_value
    deprecated(old, new, above=3)
    if new_value is not None:
        raise ConfigurationError(f"Trainer got both {new} and {old}, its deprecated name; give {new} only")
    return old_value


def resolve_hooks(hooks: Any) -> list[Hook]:
    """Resolve one hook or a list of them."""
    if hooks is None:
        return []
    if isinstance(hooks, str | Mapping | Hook | type):
        hooks = [hooks]
    if not isinstance(hooks, Iterable):
        raise ConfigurationError(
            f"Trainer(hooks=...): a hook or a list of them is needed, not a {type(hooks).__name__}"
        )
    hooks = cast("Iterable[Any]", hooks)
    return [plugin.resolve_argument(f"hooks[{index}]", "hook", spec) for index, spec in enumerate(hooks)]


def describe(spec: Any, part: object) -> str | None:
    """How a part is written down in the run's settings: its name if it was chosen by name, else its class."""
    if part is None:
        return None
    if isinstance(spec, Mapping):
        spec = spec.get("type")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] - any mapping
    return spec if isinstance(spec, str) and "://" not in spec else type(part).__name__


def check_count(name: str, value: Any, *, least: int) -> None:
    """Refuse a number of something that is no whole number, or too small; ``None`` is left to the default."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"Trainer({name}={value!r}): a whole number is needed, at least {least}")


def check_resources(resources: Any) -> NamedResources | None:
    """Refuse initial resources that are none."""
    if resources is None:
        return None
    if not isinstance(resources, dict):
        raise ConfigurationError(
            f"initial_resources must be a dict of names to resources, not {type(resources).__name__}"
        )
    for name, resource in resources.items():  # pyright: ignore[reportUnknownVariableType] - checked here
        if not isinstance(resource, Resource):
            raise ConfigurationError(
                f"initial_resources[{name!r}] is a {type(resource).__name__}, not a resource such as LLM or "  # pyright: ignore[reportUnknownArgumentType] - any value
                "PromptTemplate"
            )
    return resources  # pyright: ignore[reportUnknownVariableType] - checked above


def check_agent(agent: Any) -> None:
    """Refuse what is no agent."""
    if not isinstance(agent, LitAgent):
        raise ConfigurationError(
            f"fit needs an agent, not {type(agent).__name__}: put @rollout above your function, or subclass LitAgent"
        )


def check_dataset(which: Literal["train", "val"], dataset: Any) -> None:
    """Refuse a dataset that is empty, or has no length or no item access."""
    if dataset is None:
        return
    if isinstance(dataset, str):
        raise DatasetError(
            f"the {which} dataset is the string {dataset!r}; give a list of tasks, or to fit the URL of a v0.1 server"
        )
    if isinstance(dataset, Mapping):
        raise DatasetError(
            f"the {which} dataset is a {type(dataset).__name__}, whose items have keys and no order; "  # pyright: ignore[reportUnknownArgumentType] - any mapping
            "give one of its values, or list(dataset.values())"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DatasetError(
            f"the {which} dataset is a {type(dataset).__name__}, without a length or item access; "
            "make a list of it: list(dataset)"
        )
    if len(dataset) == 0:
        raise DatasetError(f"the {which} dataset is empty, so there is nothing to run")


def check_dry_run(algorithm: BaseAlgorithm | None) -> None:
    """Refuse an algorithm that is too slow for a dry run."""
    from lightning_core.algorithm.base import FastAlgorithm

    if algorithm is not None and not isinstance(algorithm, FastAlgorithm):
        raise ConfigurationError(
            f"a dry run needs a FastAlgorithm, and {type(algorithm).__name__} is none; "
            "leave the algorithm out to get 'baseline'"
        )


def check_needs(algorithm: BaseAlgorithm) -> None:
    """Refuse needs of an algorithm that nobody would look for."""
    from lightning_core.algorithm.base import NEEDS

    name = type(algorithm).__name__
    for need in sorted(algorithm.needs):
        if need not in NEEDS:
            near = difflib.get_close_matches(need, NEEDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"{name}.needs holds {need!r}; {hint}An algorithm may need {', '.join(NEEDS)}"
            )
    if algorithm.needs_within < 1:
        raise ConfigurationError(f"{name}.needs_within must be at least 1, not {algorithm.needs_within}")
