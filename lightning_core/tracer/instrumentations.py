"""Instrumentations of other libraries: switched on and off once for all who use them in the process."""

from __future__ import annotations

import difflib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

from opentelemetry.trace import TracerProvider

from lightning_core.errors import ConfigurationError, TraceError
from lightning_core.tracer.deferred import build_answers

__all__ = ["Instrumentation", "Instrumentations", "missing_package"]

logger = logging.getLogger(__name__)


def _nothing_missing() -> None:
    return None


def _provider_alone(provider: TracerProvider) -> dict[str, Any]:
    return {"tracer_provider": provider}


@dataclass(frozen=True)
class Instrumentation:
    """How the calls of one library become spans.

    Attributes:
        name: What users call it.
        make: Imports and makes the instrumentor: ``instrument(**options)``, ``uninstrument()``,
            ``is_instrumented_by_opentelemetry`` and ``instrumentation_dependencies()``, as OpenTelemetry's have them.
        library: The module that it instruments, which is left alone until the program imports it. ``None``: it is not
            known, and the instrumentation is switched on at once.
        missing: Says what is not installed and how to get it, or returns ``None``. It imports nothing heavy.
        options: Makes the keywords of ``instrument`` from the provider that spans go to.
    """

    name: str
    make: Callable[[], Any]
    library: str | None = None
    missing: Callable[[], str | None] = _nothing_missing
    options: Callable[[TracerProvider], Mapping[str, Any]] = _provider_alone


def missing_package(distributions: Iterable[str], get: str) -> str | None:
    """Say which of these distributions is not installed, and that ``pip install`` of ``get`` brings it."""
    for name in distributions:
        try:
            distribution(name)
        except PackageNotFoundError:
            return f"{name} is not installed. To get it: pip install {get}"
    return None


class Instrumentations:
    """The instrumentations of one package, for its tracer and for ``instrument_all``.

    A library is instrumented while at least one of them uses it, and afterwards as it was. One that is not imported yet
    is instrumented when it is, so nobody pays for what is not used.

    Args:
        owner: What begins messages, such as ``tracer 'otel'``.
        known: Those that the package vouches for.
        when_imported: Calls a function once a module of some name is imported: ``wrapt.register_post_import_hook``.
        default: The names of those that are used unless somebody says otherwise; all that are known by default.
        others: Finds further ones that are installed. It is asked for names that are not known.
    """

    def __init__(
        self,
        owner: str,
        known: Iterable[Instrumentation],
        *,
        when_imported: Callable[[Callable[[Any], object], str], object],
        default: Sequence[str] | None = None,
        others: Callable[[], Iterable[Instrumentation]] = tuple,
    ) -> None:
        self.owner = owner
        self.known = {each.name: each for each in known}
        self._default = [*self.known] if default is None else [*default]
        self._when_imported = when_imported
        self._others = others
        self._lock = threading.Lock()
        self._uses: Counter[str] = Counter()
        self._provider: TracerProvider | None = None
        self._hooked: set[str] = set()
        self._ours: dict[str, Any] = {}

    def find_installed(self) -> list[str]:
        """Return the names of those used by default that are installed; imports none."""
        return [name for name in self._default if self.known[name].missing() is None]

    def choose(self, wanted: Literal["auto"] | Sequence[str]) -> list[str]:
        """Return the names in ``wanted``, or for ``"auto"`` those of :meth:`find_installed`.

        Raises:
            ConfigurationError: If a name cannot be instrumented; see :meth:`check`.
        """
        if wanted == "auto":
            return self.find_installed()
        if isinstance(wanted, str):
            raise ConfigurationError(
                f"{self.owner}: instrument must be 'auto' or a list of names; write [{wanted!r}]"
            )
        names = list(dict.fromkeys(wanted))
        self.check(names)
        return names

    def find_unused(self, names: Iterable[str]) -> list[str]:
        """Return those known libraries that the program has not imported so far."""
        return [name for name in names if name in self.known and self.known[name].library not in sys.modules]

    def is_used(self, name: str) -> bool:
        """Whether somebody has it switched on."""
        return self._uses[name] > 0

    def check(self, names: Iterable[str]) -> None:
        """Refuse names that cannot be instrumented.

        Raises:
            ConfigurationError: If a name is unknown, with the nearest one; or if something is not installed, with the
                way to get it.
        """
        for name in names:
            missing = self._get(name).missing()
            if missing is not None:
                raise ConfigurationError(f"{self.owner} cannot instrument {name!r}, since {missing}")

    def _get(self, name: str) -> Instrumentation:
        found = self.known.get(name)
        if found is not None:
            return found
        others = {each.name: each for each in self._others()}
        if name in others:
            return others[name]
        names = sorted({*self.known, *others})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"{self.owner} cannot instrument {name!r}: no instrumentation of that name is installed; "
            f"{hint}There are: {', '.join(names)}"
        )

    def start(self, names: Sequence[str], provider: TracerProvider, *, strict: bool) -> dict[str, str]:
        """Have these libraries report their calls to ``provider``. Calls are counted; see :meth:`stop`.

        If somebody else in this process has had a library instrumented from here, its spans go on going to that
        provider, which is as good if both route by context.

        Args:
            names: The libraries.
            provider: Where their calls are reported.
            strict: Whether a library that cannot be instrumented is an error, rather than a line in the log.

        Returns:
            Why not, by name, for those that are imported and could not be instrumented.

        Raises:
            TraceError: If an instrumentation refuses, for instance because the library is too old for it.
        """
        with self._lock:
            self._provider = provider
            self._uses.update(names)
        refused: dict[str, str] = {}
        for name in names:
            each = self._get(name)
            if each.library is None or each.library in sys.modules:
                why = self._switch_on(each) if strict else self._switch_on_quietly(each)
                if why is not None:
                    refused[name] = why
            elif name not in self._hooked:
                self._hooked.add(name)
                # Quietly in any case: it is the user's own import that would fail.
                hook: Callable[[object], object] = lambda module, each=each: self._switch_on_quietly(each)  # noqa: E731
                self._when_imported(hook, each.library)
        return refused

    def stop(self, names: Iterable[str]) -> None:
        """Undo one :meth:`start`; the last one leaves the libraries as they were."""
        with self._lock:
            for name in names:
                self._uses[name] -= 1
                if self._uses[name] <= 0:
                    del self._uses[name]
                    instrumentor = self._ours.pop(name, None)
                    if instrumentor is not None and instrumentor.is_instrumented_by_opentelemetry:
                        instrumentor.uninstrument()

    def _switch_on_quietly(self, each: Instrumentation) -> str | None:
        try:
            return self._switch_on(each)
        except TraceError as error:
            logger.warning("%s. Its calls are not traced", error)
            return str(error)
        except Exception as error:
            logger.exception("%r cannot be instrumented. Its calls are not traced", each.name)
            return f"{type(error).__name__}: {error}"

    def _switch_on(self, each: Instrumentation) -> str | None:
        if not self._uses[each.name]:
            return None
        # Not under the lock: another thread may be importing the library, and be about to call the hook above.
        if each.library is not None:
            import_module(each.library)
            build_answers(each.library)
        instrumentor = each.make()
        with self._lock:
            if not self._uses[each.name] or each.name in self._ours:
                return None
            if _is_theirs(instrumentor):
                logger.info(
                    "%s is instrumented by the program itself, and stays so; its spans are stored if they go to a "
                    "tracer provider that the tracer listens to",
                    each.name,
                )
                return "the program instruments it itself, and it stays so"
            assert self._provider is not None
            instrumentor.instrument(**each.options(self._provider))
            if not instrumentor.is_instrumented_by_opentelemetry:
                raise TraceError(
                    f"the instrumentation that {self.owner} has for {each.name!r} refuses the installed version of "
                    "the library, which needs to be one of: "
                    f"{', '.join(instrumentor.instrumentation_dependencies())}"
                )
            self._ours[each.name] = instrumentor
        return None


def _is_theirs(instrumentor: Any) -> bool:
    """Say whether the program has instrumented the library; what an instrumentor is derived from counts too."""
    instances: list[Any] = [getattr(each, "_instance", None) for each in type(instrumentor).__mro__]
    return any(
        each is not None and each.is_instrumented_by_opentelemetry for each in (instrumentor, *instances)
    )
