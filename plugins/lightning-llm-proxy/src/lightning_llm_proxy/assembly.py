"""Puts the whole answer together again from the events of its stream, in the form that it would have had unstreamed."""

from __future__ import annotations

from typing import Any, Final, Protocol, cast

from .jsons import read_json

__all__ = ["Assembly", "assembly_for"]

_SET_ONCE: Final = frozenset({"id", "type", "role", "name", "index", "object"})


class Assembly(Protocol):
    """Takes the events of one stream.

    Attributes:
        ended: Whether the event that ends the answer has come.
        error: What the upstream says went wrong, if it says so within the stream.
    """

    ended: bool
    error: str | None

    def add(self, kind: str | None, event: dict[str, Any]) -> None:
        """Take the next event; it is not kept."""
        ...

    def answer(self) -> dict[str, Any]:
        """Return what has come so far; empty if nothing has."""
        ...


def assembly_for(operation: str) -> Assembly:
    """Make the assembly of an API: ``chat/completions``, ``completions``, ``responses`` or ``messages``."""
    if operation == "responses":
        return _Responses()
    if operation == "messages":
        return _Messages()
    return _Completions()


class _Text(list[str]):
    """Text that came in pieces."""

    __slots__ = ()


def _dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _joined(value: Any) -> Any:
    """Return a copy with the pieces of texts put together."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _joined(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_joined(item) for item in cast("list[Any]", value)]
    return value


def _merge(into: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add what a piece brings: texts and lists are continued, anything else is replaced."""
    for key, value in piece.items():
        before = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif isinstance(value, str):
            if key in _SET_ONCE:
                # Some engines repeat it as an empty text.
                into[key] = value or before
            elif isinstance(before, _Text):
                before.append(value)
            else:
                into[key] = _Text([value])
        elif isinstance(value, list):
            if isinstance(before, list):
                cast("list[Any]", before).extend(cast("list[Any]", value))
            else:
                into[key] = list(cast("list[Any]", value))
        elif isinstance(value, dict):
            if not isinstance(before, dict):
                into[key] = before = {}
            _merge(cast("dict[str, Any]", before), cast("dict[str, Any]", value))
        else:
            into[key] = value


class _Completions:
    """Chat completions and text completions, whose choices come in pieces side by side."""

    def __init__(self) -> None:
        self.ended = False
        self.error: str | None = None
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, kind: str | None, event: dict[str, Any]) -> None:
        """Take a chunk."""
        for key, value in event.items():
            if key == "choices":
                for choice in _list(value):
                    self._add_choice(_dict(choice))
            elif key == "error":
                self.error = _message(value)
                self._answer[key] = value
            elif value is not None or key not in self._answer:
                self._answer[key] = value

    def _add_choice(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        index = index if isinstance(index, int) else 0
        choice = self._choices.setdefault(index, {"index": index})
        for key, value in piece.items():
            if key == "delta":
                self._add_delta(choice, _dict(value))
            elif key in ("text", "logprobs", "token_ids"):
                _merge(choice, {key: value})
            elif value is not None or key not in choice:
                choice[key] = value

    def _add_delta(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        message = choice.setdefault("message", {"role": "assistant", "content": None})
        for key, value in delta.items():
            if key == "tool_calls":
                calls = message.setdefault("tool_calls", {})
                for piece in _list(value):
                    _add_call(calls, _dict(piece))
            else:
                _merge(message, {key: value})

    def answer(self) -> dict[str, Any]:
        """Return the completion."""
        if not self._answer and not self._choices:
            return {}
        answer = dict(self._answer)
        if answer.get("object") == "chat.completion.chunk":
            answer["object"] = "chat.completion"
        choices: list[dict[str, Any]] = []
        for index in sorted(self._choices):
            choice = _joined(self._choices[index])
            calls = _dict(choice.get("message")).get("tool_calls")
            if isinstance(calls, dict):
                choice["message"]["tool_calls"] = list(cast("dict[Any, Any]", calls).values())
            choices.append(choice)
        answer["choices"] = choices
        return answer


def _add_call(calls: dict[Any, dict[str, Any]], piece: dict[str, Any]) -> None:
    index = piece.get("index")
    if index is None:
        # Not numbered: a call goes on until another id comes.
        index = piece.get("id") or (next(reversed(calls)) if calls else 0)
    _merge(calls.setdefault(index, {}), {key: value for key, value in piece.items() if key != "index"})


class _Responses:
    """OpenAI's Responses API, whose last event holds the whole answer."""

    _LAST: Final = frozenset({"response.completed", "response.failed", "response.incomplete"})

    def __init__(self) -> None:
        self.ended = False
        self.error: str | None = None
        self._response: dict[str, Any] = {}
        # By their place in the output; llama.cpp names their ids alone.
        self._items: dict[Any, dict[str, Any]] = {}

    def add(self, kind: str | None, event: dict[str, Any]) -> None:
        """Take an event."""
        kind = kind or event.get("type")
        index = event.get("output_index", event.get("item_id", _dict(event.get("item")).get("id")))
        if isinstance(event.get("response"), dict):
            self._response = event["response"]
        if kind in self._LAST:
            self.ended = True
            if kind == "response.failed":
                self.error = _message(self._response.get("error"))
        elif kind == "error":
            self.error = _message(event.get("error", event))
        elif index is not None and kind is not None:
            self._add_piece(kind, index, event)

    def _add_piece(self, kind: str, index: Any, event: dict[str, Any]) -> None:
        if kind in ("response.output_item.added", "response.output_item.done"):
            self._items[index] = dict(_dict(event.get("item")))
            return
        delta = event.get("delta")
        item = self._items.setdefault(index, {})
        if not isinstance(delta, str):
            return
        if kind == "response.function_call_arguments.delta":
            # It began as an empty text.
            if not isinstance(item.get("arguments"), _Text):
                item["arguments"] = _Text()
            item["arguments"].append(delta)
        elif kind == "response.output_text.delta":
            parts = item.get("content")
            if not isinstance(parts, dict):
                item["content"] = parts = {}
            number = event.get("content_index", 0)
            part = cast("dict[Any, Any]", parts).setdefault(number, {"type": "output_text", "text": _Text()})
            part["text"].append(delta)

    def answer(self) -> dict[str, Any]:
        """Return the response; what it lacks because it was cut off is put together from the pieces."""
        if self.ended or not self._items:
            return self._response
        output: list[Any] = []
        for item in map(_joined, self._items.values()):
            if isinstance(item.get("content"), dict):
                item["content"] = list(item["content"].values())
            output.append(item)
        return {**self._response, "output": output}


class _Messages:
    """Anthropic's Messages API, whose content blocks come one after another."""

    def __init__(self) -> None:
        self.ended = False
        self.error: str | None = None
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}

    def add(self, kind: str | None, event: dict[str, Any]) -> None:
        """Take an event."""
        kind = kind or event.get("type")
        index = event.get("index")
        index = index if isinstance(index, int) else 0
        if kind == "message_start":
            self._message = dict(_dict(event.get("message")))
        elif kind == "content_block_start":
            self._blocks[index] = dict(_dict(event.get("content_block")))
        elif kind == "content_block_delta":
            self._add_delta(self._blocks.setdefault(index, {}), _dict(event.get("delta")))
        elif kind == "message_delta":
            self._message.update(_dict(event.get("delta")))
            self._message["usage"] = _dict(self._message.get("usage")) | _dict(event.get("usage"))
        elif kind == "message_stop":
            self.ended = True
        elif kind == "error":
            self.error = _message(event.get("error"))

    def _add_delta(self, block: dict[str, Any], delta: dict[str, Any]) -> None:
        for key, value in delta.items():
            if key == "type":
                continue
            # Of a tool's input, which begins as an empty object, only the JSON text comes in pieces.
            name = "input" if key == "partial_json" else key
            if isinstance(value, str):
                before = block.get(name)
                if not isinstance(before, _Text):
                    block[name] = before = _Text([before] if isinstance(before, str) else [])
                before.append(value)
            elif isinstance(value, list) and isinstance(block.get(name), list):
                block[name] = [*block[name], *cast("list[Any]", value)]
            else:
                block[name] = value

    def answer(self) -> dict[str, Any]:
        """Return the message. The input of a tool is its JSON text if that was cut off, else what it holds."""
        if not self._message and not self._blocks:
            return {}
        content = [_joined(self._blocks[index]) for index in sorted(self._blocks)]
        for block in content:
            if block.get("type") == "tool_use" and isinstance(block.get("input"), str):
                block["input"] = _parsed(block["input"])
        return {**self._message, "content": content}


def _parsed(text: str) -> Any:

    try:
        return read_json(text) if text else {}
    except ValueError:
        return text


def _message(error: Any) -> str:
    message = _dict(error).get("message")
    return message if isinstance(message, str) else str(error)
