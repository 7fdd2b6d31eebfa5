"""Looks on while an agent runs one rollout: the calls that it really sends, and what of it tracers could see."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TextIO, cast
from urllib.parse import urlsplit

from lightning_core.plugin import hookimpl
from lightning_core.tracer.capture import LightningSpanProcessor, current_trace
from lightning_core.types import Hook

if TYPE_CHECKING:
    from lightning_core.tracer.base import BaseTracer

__all__ = ["SDKS", "SentCall", "Watch"]

SDKS: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "langchain_core": "langchain",
    "litellm": "litellm",
    # The package is called `agents`, as many a program's own is.
    "agents.models.interface": "openai-agents",
    "google.genai": "google-genai",
    "mistralai": "mistralai",
    "groq": "groq",
    "cohere": "cohere",
    "ollama": "ollama",
}
"""Modules of the clients of language models, and what their instrumentations are called."""

_DISTRIBUTIONS: Final = {"langchain-core": "langchain"}
_HTTP_CLIENTS: Final = ("httpx", "httpx2")
_CALL_PATH: Final = re.compile(
    r"/(chat/completions|completions|responses|messages)$|:(stream)?generateContent$", re.IGNORECASE
)
_REQUIREMENT: Final = re.compile(r"[\w.-]+")
_NEVER_AWAITED: Final = re.compile(r"coroutine '(?P<name>[^']+)' was never awaited")


@dataclass
class SentCall:
    """A call of a language model, as it left the process.

    Attributes:
        url: Where it went.
        body: The request, if it was JSON.
        traced: Whether it was sent from within the rollout's trace.
        status: The HTTP status of the answer; ``None`` if there was none.
    """

    url: str
    body: dict[str, Any]
    traced: bool
    status: int | None = None

    @property
    def answered(self) -> bool:
        """Whether it was answered, and not with an error."""
        return self.status is not None and self.status < 400

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class LogLine:
    """What was logged by this project's packages."""

    level: int
    text: str


@dataclass(eq=False)
class Watch(Hook):
    """A hook that looks on. Its context manager, around the rollout, takes down what hooks are not told of.

    The calls are seen where they leave through ``httpx``, which the clients of OpenAI, Anthropic, LiteLLM, Mistral,
    Groq and Ollama use.

    Attributes:
        sent: The calls of language models that were sent.
        imported: Which of the known clients of language models are imported.
        instrumented: Libraries whose calls become spans, by the name of their instrumentation.
        traced: The ids of the spans that had ended when the agent had.
        idle: Settings that had no effect.
        unawaited: Names of coroutines that nobody awaited.
        log: Warnings and errors of this project's packages.
    """

    sent: list[SentCall] = field(default_factory=list[SentCall])
    imported: list[str] = field(default_factory=list[str])
    instrumented: frozenset[str] = frozenset()
    traced: set[str] = field(default_factory=set[str])
    idle: list[str] = field(default_factory=list[str])
    unawaited: list[str] = field(default_factory=list[str])
    log: list[LogLine] = field(default_factory=list[LogLine])
    _trace: LightningSpanProcessor | None = None
    _taps: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def around(self) -> Generator[None]:
        """Look on while the block runs the rollout."""
        with self._taps, _warnings(self._warned), _logging(self._logged):
            yield

    async def on_trace_start(self, **_: Any) -> None:
        """Begin to listen; being the last hook, right before the agent."""
        self._trace = current_trace()
        for name in _HTTP_CLIENTS:
            if find_spec(name) is not None:
                self._taps.enter_context(_tapped(import_module(name), self._note))

    @hookimpl(tryfirst=True)
    async def on_trace_end(self, *, tracer: BaseTracer, **_: Any) -> None:
        """See what is there at the end, while the tracer is still at work."""
        self._taps.close()
        self.imported = [name for module, name in SDKS.items() if module in sys.modules]
        self.instrumented = frozenset(_instrumented())
        self.idle += tracer.idle_settings()
        if self._trace is not None:
            contexts = (span.get_span_context() for span in self._trace.spans)
            self.traced = {f"{context.span_id:016x}" for context in contexts if context is not None}

    @property
    def unended(self) -> int:
        """How many spans of the trace have not ended, once the trace is closed."""
        return self._trace.unended if self._trace is not None else 0

    def _note(self, request: Any) -> SentCall | None:
        url = str(request.url)
        if request.method != "POST" or _CALL_PATH.search(urlsplit(url).path) is None:
            return None
        try:
            body: Any = json.loads(request.content)
        except (ValueError, RuntimeError):
            # A body that is no JSON, or is a stream.
            body = None
        known = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        call = SentCall(url, known, current_trace() is self._trace)
        self.sent.append(call)
        return call

    def _warned(self, text: str) -> bool:
        found = _NEVER_AWAITED.search(text)
        if found is not None:
            self.unawaited.append(found["name"])
        return found is not None

    def _logged(self, record: logging.LogRecord) -> None:
        # How a rollout ended is reported from the rollout itself.
        if record.name.startswith("lightning") and record.name != "lightning_core.runner.agent":
            line = LogLine(record.levelno, record.getMessage())
            if line not in self.log:
                self.log.append(line)


def _instrumented() -> Iterator[str]:
    """Yield the libraries whose instrumentation is on, whoever has switched it on."""
    module: Any = sys.modules.get("opentelemetry.instrumentation.instrumentor")
    if module is None:
        return
    classes: list[Any] = [module.BaseInstrumentor]
    while classes:
        cls: Any = classes.pop()
        classes += cls.__subclasses__()
        # An instrumentor is a singleton, which is there if somebody has asked for it.
        instance = cast("dict[str, Any]", vars(cls)).get("_instance")
        if instance is None or not instance.is_instrumented_by_opentelemetry:
            continue
        for requirement in instance.instrumentation_dependencies():
            if found := _REQUIREMENT.match(requirement):
                name = re.sub(r"[-_.]+", "-", found[0]).lower()
                yield _DISTRIBUTIONS.get(name, name)


@contextmanager
def _tapped(client: Any, note: Callable[[Any], SentCall | None]) -> Generator[None]:
    """Have the requests of an HTTP client library noted as long as the block lasts."""
    send, send_async = client.Client.send, client.AsyncClient.send

    @functools.wraps(send)
    def noting(self: Any, request: Any, **others: Any) -> Any:
        call = note(request)
        response = send(self, request, **others)
        if call is not None:
            call.status = response.status_code
        return response

    @functools.wraps(send_async)
    async def noting_async(self: Any, request: Any, **others: Any) -> Any:
        call = note(request)
        response = await send_async(self, request, **others)
        if call is not None:
            call.status = response.status_code
        return response

    client.Client.send, client.AsyncClient.send = noting, noting_async
    try:
        yield
    finally:
        client.Client.send, client.AsyncClient.send = send, send_async


@contextmanager
def _warnings(take: Callable[[str], bool]) -> Generator[None]:
    """Hand over warnings of coroutines that nobody awaited; those that ``take`` does not want are shown as ever."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_NEVER_AWAITED.pattern, category=RuntimeWarning)
        show = warnings.showwarning

        def showing(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not take(str(message)):
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = showing
        yield


@contextmanager
def _logging(take: Callable[[logging.LogRecord], None]) -> Generator[None]:
    """Hand over log records from warnings up, also where logging is set up to show less; show no more than before."""

    class Taker(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            take(record)

    root = logging.getLogger()
    level, taker = root.level, Taker(logging.WARNING)
    others = [(handler, handler.level) for handler in root.handlers]
    if level > logging.WARNING:
        for handler, own in others:
            handler.setLevel(max(level, own))
        root.setLevel(logging.WARNING)
    root.addHandler(taker)
    try:
        yield
    finally:
        root.removeHandler(taker)
        root.setLevel(level)
        for handler, own in others:
            handler.setLevel(own)
