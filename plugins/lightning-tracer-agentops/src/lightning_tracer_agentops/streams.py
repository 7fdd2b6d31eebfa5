"""Streams of the ``openai`` package that are recorded while somebody reads them, and are the same to the reader."""

from __future__ import annotations

from typing import Any, Protocol, Self, cast

from wrapt import ObjectProxy

__all__ = ["AsyncStreamProxy", "ChatAnswer", "RawStreamProxy", "ResponseAnswer", "StreamProxy"]

# Untyped, or every use of what it wraps would need a cast.
_Proxy: Any = ObjectProxy
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


class Recorder(Protocol):
    """What a stream tells."""

    def add(self, part: Any) -> None:
        """A part has come."""

    def finish_stream(self, error: BaseException | None = None) -> None:
        """There will be no more."""


class ChatAnswer:
    """Puts an answer of a chat together again."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {"object": "chat.completion.chunk"}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, part: Any) -> None:
        """Add a chunk."""
        chunk: dict[str, Any] = part.model_dump(mode="json", exclude_unset=True, warnings=False)
        for choice in chunk.pop("choices", None) or ():
            self._add_choice(choice)
        self._head.update((key, value) for key, value in chunk.items() if value is not None)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        whole = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
        delta: dict[str, Any] = choice.get("delta") or {}
        message: dict[str, Any] = whole["message"]
        for key in _TEXTS:
            if delta.get(key) is not None:
                message[key] = (message.get(key) or "") + delta[key]
        for call in delta.get("tool_calls") or ():
            _add_tool_call(message.setdefault("tool_calls", []), call)
        if choice.get("finish_reason") is not None:
            whole["finish_reason"] = choice["finish_reason"]
        if choice.get("token_ids"):
            whole.setdefault("token_ids", []).extend(choice["token_ids"])
        logprobs: dict[str, Any] = choice.get("logprobs") or {}
        for key, entries in logprobs.items():
            if isinstance(entries, list):
                whole.setdefault("logprobs", {}).setdefault(key, []).extend(cast("list[Any]", entries))

    def whole(self) -> dict[str, Any]:
        """Return what has come so far, as a chat completion."""
        return {**self._head, "choices": [self._choices[index] for index in sorted(self._choices)]}


def _add_tool_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    index: int = part.get("index", len(calls))
    function: dict[str, Any] = part.get("function") or {}
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"arguments": ""}})
    call = calls[index]
    if part.get("id"):
        call["id"] = part["id"]
    if function.get("name"):
        call["function"]["name"] = function["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


class ResponseAnswer:
    """Keeps the last state of an answer of the Responses API, which its events repeat."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}

    def add(self, part: Any) -> None:
        """Add an event."""
        response = getattr(part, "response", None)
        if response is not None:
            self._response = response.model_dump(mode="json", exclude_unset=True, warnings=False)

    def whole(self) -> dict[str, Any]:
        """Return it."""
        return self._response


class StreamProxy(_Proxy):
    """An ``openai.Stream``."""

    def __init__(self, stream: Any, call: Recorder) -> None:
        super().__init__(stream)  # pyright: ignore[reportUnknownMemberType] - see _Proxy
        self._self_call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            part = next(self.__wrapped__)
        except StopIteration:
            self._self_call.finish_stream()
            raise
        except BaseException as error:
            self._self_call.finish_stream(error)
            raise
        self._self_call.add(part)
        return part

    def __enter__(self) -> Self:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.__wrapped__.__exit__(*error)
        self._self_call.finish_stream()

    def close(self) -> None:
        """Close the stream."""
        self.__wrapped__.close()
        self._self_call.finish_stream()


class AsyncStreamProxy(_Proxy):
    """An ``openai.AsyncStream``."""

    def __init__(self, stream: Any, call: Recorder) -> None:
        super().__init__(stream)  # pyright: ignore[reportUnknownMemberType] - see _Proxy
        self._self_call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            part = await self.__wrapped__.__anext__()
        except StopAsyncIteration:
            self._self_call.finish_stream()
            raise
        except BaseException as error:
            self._self_call.finish_stream(error)
            raise
        self._self_call.add(part)
        return part

    async def __aenter__(self) -> Self:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.__wrapped__.__aexit__(*error)
        self._self_call.finish_stream()

    async def close(self) -> None:
        """Close the stream."""
        await self.__wrapped__.close()
        self._self_call.finish_stream()


class RawStreamProxy(_Proxy):
    """A raw response whose ``parse`` gives a stream."""

    def __init__(self, response: Any, call: Recorder) -> None:
        super().__init__(response)  # pyright: ignore[reportUnknownMemberType] - see _Proxy
        self._self_call = call
        self._self_parsed: Any = None

    def parse(self, **options: Any) -> Any:
        """Return the stream."""
        if self._self_parsed is None:
            stream = self.__wrapped__.parse(**options)
            proxy = AsyncStreamProxy if hasattr(stream, "__anext__") else StreamProxy
            self._self_parsed = proxy(stream, self._self_call)
        return self._self_parsed
