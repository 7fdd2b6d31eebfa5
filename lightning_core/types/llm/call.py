"""``LLMCall``: one view on the span of a language-model call, whichever convention it was written in.

Understood are OpenTelemetry's GenAI semantic conventions in their newest form (``gen_ai.input.messages``,
``gen_ai.output.messages``), as span events, and in the indexed form of Traceloop and AgentOps
(``gen_ai.prompt.{i}.role``, ``gen_ai.completion.{i}.content``), and OpenInference
(``llm.input_messages.{i}.message.role``, and the raw request and answer in ``input.value`` and ``output.value``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from lightning_core.types.tracing import SpanLike

from .apis import answer_message, request_messages, tool_definition
from .messages import (
    MESSAGE_KEYS,
    Message,
    as_dict,
    as_list,
    genai_messages,
    has_indexed,
    indexed,
    indexed_messages,
    messages_of_entries,
    openinference_messages,
    parsed,
)
from .token_ids import TokenIds, prompt_token_ids, response_logprobs, response_token_ids

__all__ = ["LLMCall", "LLMChoice", "is_llm_call"]

T = TypeVar("T")

Convention = Literal["gen_ai", "gen_ai-events", "gen_ai-indexed", "openinference", "unknown"]

# Sequences, and not sets: a set cannot be asked for an attribute that is a list.
_CALL_OPERATIONS = ("chat", "text_completion", "generate_content", "completion")
_OTHER_KINDS = [
    "agent",
    "chain",
    "guardrail",
    "http",
    "operation",
    "session",
    "task",
    "team",
    "tool",
    "trace",
    "workflow",
]
_PARAMETERS = "gen_ai.request."
# Traceloop's name, and that of AgentOps.
_FUNCTIONS = ("llm.request.functions.", "gen_ai.request.functions.")
_FIRST_FUNCTIONS = tuple(f"{prefix}0.name" for prefix in _FUNCTIONS)
_NO_PARAMETERS = frozenset(
    {"input", "instructions", "messages", "model", "prompt", "system", "tools", "type"}
)


@dataclass(frozen=True)
class LLMChoice:
    """One answer to a call.

    Attributes:
        message: The model's message.
        finish_reason: Why the model stopped, if known.
        token_ids: Ids of the sampled tokens.
        logprobs: Log-probability of each sampled token, as the engine gave them (natural logarithm).
    """

    message: Message
    finish_reason: str | None = None
    token_ids: TokenIds = field(default_factory=TokenIds)
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class LLMCall:
    """What a span tells about one call of a language model. All of it is JSON-able and shares nothing with the span.

    Attributes:
        convention: How the span was written.
        messages: The prompt, as messages of the chat-completion form.
        text: The prompt of a plain text completion; ``None`` for a chat.
        tools: Definitions of the tools that the model was offered.
        choices: The answers, one for each that was asked for; none if the call failed or its answer was not recorded.
        model: Name of the model, the one that answered rather than the one that was asked for.
        response_id: The provider's id of the answer.
        parameters: Sampling and other parameters of the request.
        input_tokens: Tokens of the prompt, as counted by the engine.
        output_tokens: Tokens of all choices together, as counted by the engine.
        prompt_token_ids: Ids of the prompt's tokens.
    """

    convention: Convention = "unknown"
    messages: list[Message] = field(default_factory=list[Message])
    text: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    choices: list[LLMChoice] = field(default_factory=list[LLMChoice])
    model: str | None = None
    response_id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_token_ids: TokenIds = field(default_factory=TokenIds)

    @classmethod
    def from_span(cls, span: SpanLike) -> LLMCall:
        """Read a span. What it does not hold is left empty; nothing raises, whatever the attributes are."""
        attributes = cast("Mapping[str, Any]", span.attributes or {})
        if not span.events:
            return cls.from_attributes(attributes)
        events = [(event.name, cast("Mapping[str, Any]", event.attributes or {})) for event in span.events]
        return cls.from_attributes(attributes, events)

    @classmethod
    def from_attributes(
        cls, attributes: Mapping[str, Any], events: Sequence[tuple[str, Mapping[str, Any]]] = ()
    ) -> LLMCall:
        """Read the attributes of a span and the names and attributes of its events."""
        request, answer = _json_object(attributes, "input.value"), _json_object(attributes, "output.value")
        scattered = _Scattered(attributes)
        convention, messages = _prompt(attributes, events, request, scattered)
        usage = as_dict(answer.get("usage"))
        counted = usage.get("completion_tokens", usage.get("output_tokens"))
        output_tokens = _first(attributes, _OUTPUT_TOKENS, counted, int)
        spoken, choices = _choices(attributes, events, answer, scattered, output_tokens)
        text = request.get("prompt", attributes.get("llm.prompts.0.prompt.text"))
        input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
        call = object.__new__(cls)
        # The constructor of a frozen dataclass takes twice as long, and this is called for every span.
        call.__dict__.update(
            convention=spoken if convention == "unknown" else convention,
            messages=messages,
            text=text if isinstance(text, str) else None,
            tools=_tools(attributes, request),
            choices=choices,
            model=_first(attributes, _MODELS, answer.get("model"), str),
            response_id=_first(attributes, _RESPONSE_IDS, answer.get("id"), str),
            parameters=_parameters(attributes, request),
            input_tokens=_first(attributes, _INPUT_TOKENS, input_tokens, int),
            output_tokens=output_tokens,
            prompt_token_ids=prompt_token_ids(attributes, request, answer),
        )
        return call

    @property
    def response(self) -> LLMChoice | None:
        """The first answer, if there is one."""
        return self.choices[0] if self.choices else None


class _Scattered:
    """The messages that are scattered over attributes, gathered when they are first asked for.

    A span that holds the raw request and answer often holds them too, and then nobody asks.
    """

    __slots__ = ("_attributes", "_found")

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self._attributes = attributes
        self._found: dict[str, list[dict[str, Any]]] | None = None

    def get(self, prefix: str) -> list[dict[str, Any]]:
        """Return the messages under one of :data:`MESSAGE_KEYS`."""
        if self._found is None:
            self._found = indexed_messages(self._attributes)
        return self._found.get(prefix, [])


_MODELS = ("gen_ai.response.model", "llm.model_name", "gen_ai.request.model")
_RESPONSE_IDS = ("gen_ai.response.id", "llm.response.id")
_INPUT_TOKENS = ("llm.token_count.prompt", "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT_TOKENS = (
    "llm.token_count.completion",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
)


def _json_object(attributes: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = attributes.get(key)
    return as_dict(parsed(value)) if isinstance(value, str) and value.startswith("{") else {}


def _first(attributes: Mapping[str, Any], keys: tuple[str, ...], default: Any, kind: type[T]) -> T | None:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, kind) and value != "":
            return value
    return default if isinstance(default, kind) and default != "" else None


def is_llm_call(attributes: Mapping[str, Any]) -> bool:
    """Say whether attributes are those of a call of a language model, and not of an agent, a tool or an embedding."""
    if not attributes:
        return False
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return str(kind).upper() == "LLM"
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in _CALL_OPERATIONS
    for key in ("agentops.span.kind", "traceloop.span.kind"):
        kind = attributes.get(key)
        if kind == "llm":
            return True
        if kind in _OTHER_KINDS:
            return False
    for key in ("llm.request.type", "gen_ai.request.type"):
        kind = attributes.get(key)
        if kind is not None:
            return kind in _CALL_OPERATIONS
    return (
        "gen_ai.output.messages" in attributes
        or "gen_ai.input.messages" in attributes
        or has_indexed(attributes, MESSAGE_KEYS)
    )


def _prompt(
    attributes: Mapping[str, Any],
    events: Sequence[tuple[str, Mapping[str, Any]]],
    request: dict[str, Any],
    scattered: _Scattered,
) -> tuple[Convention, list[Message]]:
    if "gen_ai.input.messages" in attributes:
        return "gen_ai", _with_instructions(attributes)
    messages = request_messages(request) if request else []
    if not messages:
        messages = openinference_messages(scattered.get("llm.input_messages."))
    if messages or "openinference.span.kind" in attributes:
        return "openinference", messages
    messages = messages_of_entries(scattered.get("gen_ai.prompt."))
    if messages:
        return "gen_ai-indexed", messages
    for name, event in events:
        if "gen_ai.input.messages" in event:
            return "gen_ai", _with_instructions(event)
        if name == "gen_ai.content.prompt":
            messages = genai_messages(event.get("gen_ai.prompt"))
        elif name in _MESSAGE_EVENTS:
            messages.append(_event_message(event, _MESSAGE_EVENTS[name]))
    if messages:
        return "gen_ai-events", messages
    messages = genai_messages(attributes.get("gen_ai.prompt"))
    return ("gen_ai" if messages else "unknown"), messages


def _with_instructions(attributes: Mapping[str, Any]) -> list[Message]:
    parts = as_list(parsed(attributes.get("gen_ai.system_instructions")))
    system = genai_messages([{"role": "system", "parts": parts}]) if parts else []
    return system + genai_messages(attributes["gen_ai.input.messages"])


_MESSAGE_EVENTS = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}


def _event_message(event: Mapping[str, Any], role: str) -> Message:
    message: Message = {"role": event.get("role", role), "content": event.get("content")}
    calls = as_list(parsed(event.get("tool_calls")))
    if calls:
        message["tool_calls"] = calls
    if role == "tool" and event.get("id") is not None:
        message["tool_call_id"] = event["id"]
    return message


def _choices(
    attributes: Mapping[str, Any],
    events: Sequence[tuple[str, Mapping[str, Any]]],
    answer: dict[str, Any],
    scattered: _Scattered,
    output_tokens: int | None,
) -> tuple[Convention, list[LLMChoice]]:
    raw: list[dict[str, Any]] = []
    said: list[Message] = []
    for item in as_list(answer.get("choices")) if answer else ():
        message = _raw_message(as_dict(item))
        if message is not None:
            raw.append(item)
            said.append(message)
    convention, messages = _answers(attributes, events, answer, scattered, said)
    reasons = attributes.get("gen_ai.response.finish_reasons", attributes.get("llm.finish_reason"))
    if isinstance(reasons, str):
        reasons = parsed(reasons) if reasons[:1] == "[" else [reasons]
    reasons = as_list(reasons)
    counted = output_tokens if isinstance(output_tokens, int) and len(messages) == 1 else None
    choices: list[LLMChoice] = []
    for index, message in enumerate(messages):
        choice = raw[index] if index < len(raw) else {}
        reason = message.pop("finish_reason", None) or choice.get("finish_reason")
        if reason is None and index < len(reasons):
            reason = reasons[index]
        if message.get("role") is None:
            message["role"] = "assistant"
        # Attributes of the span cannot say which of several choices they mean.
        own: Mapping[str, Any] = attributes if len(messages) == 1 else {}
        made = object.__new__(LLMChoice)
        made.__dict__.update(
            message=message,
            finish_reason=reason if isinstance(reason, str) else None,
            token_ids=response_token_ids(own, answer, choice, counted),
            logprobs=response_logprobs(choice),
        )
        choices.append(made)
    return convention, choices


def _answers(
    attributes: Mapping[str, Any],
    events: Sequence[tuple[str, Mapping[str, Any]]],
    answer: dict[str, Any],
    scattered: _Scattered,
    said: list[Message],
) -> tuple[Convention, list[Message]]:
    if "gen_ai.output.messages" in attributes:
        return "gen_ai", genai_messages(attributes["gen_ai.output.messages"])
    if said:
        return "openinference", said
    spoken = answer_message(answer) if answer else None
    if spoken is not None:
        return "openinference", [spoken]
    messages = openinference_messages(scattered.get("llm.output_messages."))
    if messages:
        # The items of one answer of the Responses API are no alternatives.
        return "openinference", [_joined(messages)] if answer.get("object") == "response" else messages
    messages = messages_of_entries(scattered.get("gen_ai.completion."))
    if messages:
        return "gen_ai-indexed", messages
    for name, event in events:
        if "gen_ai.output.messages" in event:
            return "gen_ai", genai_messages(event["gen_ai.output.messages"])
        if name == "gen_ai.content.completion":
            messages = genai_messages(event.get("gen_ai.completion"))
        elif name == "gen_ai.choice":
            message = as_dict(parsed(event.get("message"))) or {"content": event.get("content")}
            messages.append({"role": "assistant", **message, "finish_reason": event.get("finish_reason")})
    if messages:
        return "gen_ai-events", messages
    return "gen_ai", genai_messages(attributes.get("gen_ai.completion"))


def _raw_message(choice: dict[str, Any]) -> Message | None:
    message = as_dict(choice.get("message"))
    if message:
        kept = {key: value for key, value in message.items() if value is not None}
        return {"role": "assistant", "content": None, **kept}
    text = choice.get("text")
    return {"role": "assistant", "content": text} if isinstance(text, str) else None


def _joined(messages: list[Message]) -> Message:
    joined: Message = {"role": "assistant", "content": None}
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        for part in as_list(content):
            text = as_dict(part).get("text")
            if isinstance(text, str):
                texts.append(text)
        if message.get("tool_calls"):
            joined.setdefault("tool_calls", []).extend(message["tool_calls"])
    if texts:
        joined["content"] = "".join(texts)
    return joined


def _tools(attributes: Mapping[str, Any], request: dict[str, Any]) -> list[dict[str, Any]]:
    tools = [as_dict(tool) for tool in as_list(request.get("tools"))]
    if not tools and "gen_ai.tool.definitions" in attributes:
        tools = [as_dict(tool) for tool in as_list(parsed(attributes["gen_ai.tool.definitions"]))]
    if not tools and "llm.tools.0.tool.json_schema" in attributes:
        entries = indexed(attributes, "llm.tools.")
        tools = [as_dict(parsed(as_dict(entry.get("tool")).get("json_schema"))) for entry in entries]
    for prefix, first in zip(_FUNCTIONS, _FIRST_FUNCTIONS, strict=True):
        if not tools and first in attributes:
            for entry in indexed(attributes, prefix):
                if isinstance(entry.get("parameters"), str):
                    entry["parameters"] = parsed(entry["parameters"])
                tools.append({"type": "function", "function": entry})
    return [tool_definition(tool) for tool in tools if tool]


def _parameters(attributes: Mapping[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    if "model" in request:
        parameters = request
    elif isinstance(given := attributes.get("llm.invocation_parameters"), str):
        parameters = as_dict(parsed(given))
    else:
        parameters: dict[str, Any] = {}
        for key, value in attributes.items():
            if key.startswith(_PARAMETERS) and "." not in (name := key[len(_PARAMETERS) :]):
                parameters[name] = (
                    list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else value
                )
    if not parameters:
        return {}
    return {key: value for key, value in parameters.items() if key not in _NO_PARAMETERS}
