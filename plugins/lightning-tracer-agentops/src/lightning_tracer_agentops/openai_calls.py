"""AgentOps' instrumentation of the ``openai`` package, with calls of chats and of the Responses API recorded whole.

AgentOps 0.4.21 leaves the calls of tools out of an answer, and reports them to the program's global tracer provider
instead; it skips earlier answers in a prompt; it hands out streams without most of their methods and asks for usage
that nobody asked for; and it is not undone. What it does for the package's other interfaces stays as it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from agentops.instrumentation.providers.openai.instrumentor import (  # pyright: ignore[reportMissingTypeStubs]
    OpenaiInstrumentor,
)
from opentelemetry import trace as trace_api
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, unwrap
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from wrapt import wrap_function_wrapper

from lightning_core.types.llm import LLMCall

from .attributes import KIND, call_attributes, text_of
from .streams import AsyncStreamProxy, ChatAnswer, RawStreamProxy, ResponseAnswer, StreamProxy

__all__ = ["WholeOpenaiInstrumentor"]

logger = logging.getLogger(__name__)

_CHAT = ("openai.resources.chat.completions", "openai.chat.completion", ChatAnswer)
_RESPONSES = ("openai.resources.responses", "openai.responses.create", ResponseAnswer)
# Where `parse` was before it was moved.
_BETA = ("openai.resources.beta.chat.completions", "openai.chat.completion", ChatAnswer)
_METHODS = (
    (*_CHAT, "Completions", ("create", "parse")),
    (*_CHAT, "AsyncCompletions", ("create", "parse")),
    (*_RESPONSES, "Responses", ("create", "parse")),
    (*_RESPONSES, "AsyncResponses", ("create", "parse")),
    (*_BETA, "Completions", ("parse",)),
    (*_BETA, "AsyncCompletions", ("parse",)),
)
_NOT_SENT = frozenset({"extra_headers", "extra_query", "extra_body", "timeout"})
_RAW = "X-Stainless-Raw-Response"


class WholeOpenaiInstrumentor(OpenaiInstrumentor):
    """Instruments the ``openai`` package; :meth:`uninstrument` leaves it as it was."""

    # There is one instrumentor of each class in a process, and this is not that of the class above.
    _instance = None

    def _custom_wrap(self, **kwargs: Any) -> None:
        self._wrapped: list[tuple[type, str]] = []
        tracer: Tracer | None = self._tracer
        assert tracer is not None
        for module, name, answer, class_name, methods in _METHODS:
            owner = _find(module, class_name)
            for method in methods:
                if hasattr(owner, method) and (owner, method) not in self._wrapped:
                    make = _async_wrapper if class_name.startswith("Async") else _wrapper
                    wrap_function_wrapper(owner, method, make(tracer, name, answer))
                    self._wrapped.append((owner, method))

    def _custom_unwrap(self, **kwargs: Any) -> None:
        for owner, method in self._wrapped:
            unwrap(owner, method)
        self._wrapped.clear()


def _find(module: str, class_name: str) -> Any:
    try:
        return getattr(import_module(module), class_name, None)
    except ModuleNotFoundError:
        return None


class _Call:
    """One call: its span, from the request to the end of the answer."""

    def __init__(self, tracer: Tracer, name: str, answer: Any, request: Mapping[str, Any]) -> None:
        self.span = tracer.start_span(name, kind=SpanKind.CLIENT)
        self.answer = answer
        # Now: an agent may go on with the same list of messages.
        self._request = text_of(request)
        self._model = request.get("model")
        self._open = True

    def finish(self, answer: str = "{}", error: BaseException | None = None) -> None:
        """End the span, unless it has ended."""
        if not self._open:
            return
        self._open = False
        try:
            self.span.set_attributes(self._attributes(answer))
        except Exception:
            logger.exception("a call of the openai package cannot be recorded whole")
        if error is not None:
            self.span.record_exception(error)
            self.span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
        self.span.end()

    def _attributes(self, answer: str) -> dict[str, Any]:
        call = LLMCall.from_attributes({"input.value": self._request, "output.value": answer})
        attributes = {
            KIND: "llm",
            "gen_ai.system": "OpenAI",
            "gen_ai.request.type": "chat",
            **call_attributes(call),
        }
        if self._model:
            attributes["gen_ai.request.model"] = str(self._model)
        if any(choice.token_ids.ids or choice.logprobs for choice in call.choices):
            # AgentOps has no names for them.
            attributes["output.value"] = answer
        return attributes

    def add(self, part: Any) -> None:
        """Note a part of a stream."""
        try:
            self.answer.add(part)
        except Exception:
            logger.exception("a part of a stream cannot be recorded")

    def finish_stream(self, error: BaseException | None = None) -> None:
        """End the span with what has come of the stream."""
        if self._open:
            self.finish(json.dumps(self.answer.whole()), error)

    def __del__(self) -> None:
        # A stream that nobody has read to its end or closed.
        self.finish_stream()


def _begin(tracer: Tracer, name: str, answer: Callable[[], Any], kwargs: dict[str, Any]) -> _Call | None:
    """Start a span for a call, or return ``None`` if there is to be none."""
    if not is_instrumentation_enabled():
        return None
    try:
        for key in ("messages", "input"):
            if isinstance(kwargs.get(key), Iterable) and not isinstance(kwargs[key], str | list | tuple):
                kwargs[key] = list(kwargs[key])
        request = {
            key: value
            for key, value in kwargs.items()
            if key not in _NOT_SENT and type(value).__name__ not in ("NotGiven", "Omit")
        }
        request.update(kwargs.get("extra_body") or {})
        return _Call(tracer, name, answer(), request)
    except Exception:
        logger.exception("a call of the openai package cannot be recorded")
        return None


def _answered(call: _Call, answer: Any, kwargs: Mapping[str, Any]) -> Any:
    """Record an answer, and return it, or what records it when it is read."""
    from openai import AsyncStream, Stream

    headers: Mapping[str, Any] = kwargs.get("extra_headers") or {}
    raw = headers.get(_RAW)
    streamed = kwargs.get("stream") is True
    if raw not in (None, "true"):
        # Its body is for the caller alone to read.
        call.finish()
    elif raw is not None and streamed:
        return RawStreamProxy(answer, call)
    elif isinstance(answer, Stream):
        return StreamProxy(answer, call)
    elif isinstance(answer, AsyncStream):
        return AsyncStreamProxy(answer, call)
    else:
        try:
            text = text_of(answer.parse() if raw is not None else answer)
        except Exception:
            logger.exception("an answer to a call of the openai package cannot be recorded")
            text = "{}"
        call.finish(text)
    return answer


def _wrapper(tracer: Tracer, name: str, answer: Callable[[], Any]) -> Callable[..., Any]:
    def wrapper(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = _begin(tracer, name, answer, kwargs)
        if call is None:
            return wrapped(*args, **kwargs)
        try:
            with trace_api.use_span(call.span, record_exception=False, set_status_on_exception=False):
                given = wrapped(*args, **kwargs)
        except BaseException as error:
            call.finish(error=error)
            raise
        return _answered(call, given, kwargs)

    return wrapper


def _async_wrapper(tracer: Tracer, name: str, answer: Callable[[], Any]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(
        wrapped: Callable[..., Awaitable[Any]], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = _begin(tracer, name, answer, kwargs)
        if call is None:
            return await wrapped(*args, **kwargs)
        try:
            with trace_api.use_span(call.span, record_exception=False, set_status_on_exception=False):
                given = await wrapped(*args, **kwargs)
        except BaseException as error:
            call.finish(error=error)
            raise
        return _answered(call, given, kwargs)

    return wrapper
