"""A callback handler that records the runs of LangChain: chains, tools, retrievers, and calls of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.agents import AgentAction
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult
from opentelemetry import trace as trace_api
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from lightning_core.tracer.capture import current_trace

from .attributes import KIND, Attributes, text_of
from .messages import answer_attributes, parameter_attributes, prompt_attributes
from .runs import Run

__all__ = ["LangchainCallbackHandler"]

_NAME = "agentops.entity.name"
_TAGS = "agentops.tags"
_METADATA = "metadata"
_ALWAYS = (_NAME, _TAGS, _METADATA)
_GROUPS = ("gen_ai.prompt.", "gen_ai.completion.", "gen_ai.request.functions.", "gen_ai.usage.")


class LangchainCallbackHandler(BaseCallbackHandler):
    """Records each run as a span below that of the run which it is part of.

    Pass it along with a call, ``chain.invoke(..., config={"callbacks": [handler]})``, synchronous or not. One handler
    serves any number of calls at once. The span of a model has the prompt, the answer, the calls of tools and the
    usage. Where an instrumentation sees the same call, what it saw becomes part of that span, and of no other.

    Args:
        tracer: Starts the spans.
        tags: Tags of every span.
    """

    # In the caller's context and in order, also where LangChain works asynchronously.
    run_inline = True

    def __init__(self, tracer: Tracer, tags: Sequence[str] | None = None) -> None:
        self._tracer = tracer
        self._tags = list(tags or ())
        self._runs: dict[UUID, Run] = {}

    def _begin(
        self,
        kind: str,
        name: str,
        run_id: UUID,
        parent_run_id: UUID | None,
        attributes: Attributes,
        tags: list[str] | None,
        metadata: dict[str, Any] | None,
        *,
        prompts: int = 0,
    ) -> None:
        attributes = {KIND: kind, _NAME: name, **attributes}
        all_tags = list(dict.fromkeys([*self._tags, *(tags or ())]))
        if all_tags:
            attributes[_TAGS] = all_tags
        if metadata:
            attributes[_METADATA] = text_of(metadata)
        parent = self._runs.get(parent_run_id) if parent_run_id is not None else None
        outer = trace_api.get_current_span()
        context = trace_api.set_span_in_context(parent.span) if parent is not None else None
        span = self._tracer.start_span(name, context, SpanKind.CLIENT if kind == "llm" else SpanKind.INTERNAL)
        run = Run(span, attributes, parent, outer.get_span_context(), current_trace())
        run.asks, run.shared = prompts > 0, prompts > 1
        self._runs[run_id] = run
        run.enter()

    def _end(self, run_id: UUID, attributes: Attributes, error: BaseException | None = None) -> None:
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        run.attributes.update(attributes)
        if error is not None:
            run.span.record_exception(error)
            run.span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
        run.close()

    # Models

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin the call of a chat model. ``messages`` holds one prompt."""
        prompt = prompt_attributes(messages[0]) if messages else {}
        self._begin_call("chat", serialized, prompt, run_id, parent_run_id, tags, metadata, kwargs)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin the completion of a text. ``prompts`` holds one."""
        prompt = {"llm.prompts.0.prompt.text": prompts[0]} if prompts else {}
        self._begin_call("text_completion", serialized, prompt, run_id, parent_run_id, tags, metadata, kwargs)

    def _begin_call(
        self,
        operation: str,
        serialized: dict[str, Any],
        prompt: Attributes,
        run_id: UUID,
        parent_run_id: UUID | None,
        tags: list[str] | None,
        metadata: dict[str, Any] | None,
        others: dict[str, Any],
    ) -> None:
        parameters: Mapping[str, Any] = others.get("invocation_params") or {}
        attributes = {
            "gen_ai.operation.name": operation,
            **parameter_attributes(parameters, metadata or {}),
            **prompt,
        }
        name = _name(serialized, others)
        prompts = others.get("batch_size", 1)
        self._begin("llm", name, run_id, parent_run_id, attributes, tags, metadata, prompts=prompts)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note that the call has been made: what is called from now on is called by who reads the stream."""
        run = self._runs.get(run_id)
        if run is not None:
            run.inside = False

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """The same, where a stream is read as events."""
        self.on_llm_new_token(None, run_id=run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """End a call of a model."""
        self._end_call(run_id, answer_attributes(response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a call of a model that failed; what came of the answer is kept."""
        partial = kwargs.get("response")
        self._end_call(run_id, answer_attributes(partial) if isinstance(partial, LLMResult) else {}, error)

    def _end_call(self, run_id: UUID, answer: Attributes, error: BaseException | None = None) -> None:
        run = self._runs.get(run_id)
        if run is None:
            return
        seen, calls = run.take_call()
        if calls > 1:
            # They are spans of their own, and this one only holds them together.
            kept = {key: run.attributes[key] for key in _ALWAYS if key in run.attributes}
            run.attributes = {**kept, KIND: "task"}
        else:
            run.attributes = _merge({**run.attributes, **answer}, seen)
        self._end(run_id, {}, error)

    # Everything else

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a chain, a part of one, or a node of a graph."""
        attributes = {"chain.input": text_of(inputs)}
        self._begin("chain", _name(serialized, kwargs), run_id, parent_run_id, attributes, tags, metadata)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End it."""
        self._end(run_id, {"chain.output": text_of(outputs)})

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End one that failed."""
        self._end(run_id, {}, error)

    def on_agent_action(self, action: AgentAction, *, run_id: UUID, **kwargs: Any) -> None:
        """Note what an agent of the old kind is about to do."""
        run = self._runs.get(run_id)
        if run is not None:
            run.span.add_event("agent.action", {"tool": action.tool, "input": text_of(action.tool_input)})

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a tool."""
        name = _name(serialized, kwargs)
        arguments = input_str if inputs is None else text_of(inputs)
        known = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.arguments": arguments,
            "gen_ai.tool.description": serialized.get("description") if serialized else None,
            "gen_ai.tool.call.id": kwargs.get("tool_call_id"),
        }
        attributes = {key: value for key, value in known.items() if value}
        self._begin("tool", name, run_id, parent_run_id, attributes, tags, metadata)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End it."""
        content = output.content if isinstance(output, BaseMessage) else output
        attributes = {"gen_ai.tool.call.result": text_of(content)}
        if isinstance(output, ToolMessage):
            # Older releases of LangChain do not tell it when the tool begins.
            attributes["gen_ai.tool.call.id"] = output.tool_call_id
        self._end(run_id, attributes)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End one that failed."""
        self._end(run_id, {}, error)

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a search for documents."""
        attributes = {"retriever.query": query}
        self._begin("operation", _name(serialized, kwargs), run_id, parent_run_id, attributes, tags, metadata)

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        """End it."""
        self._end(run_id, {"retriever.documents": text_of(list(documents))})

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End one that failed."""
        self._end(run_id, {}, error)


def _name(serialized: Mapping[str, Any] | None, others: Mapping[str, Any]) -> str:
    path = (serialized or {}).get("id")
    name = others.get("name") or (serialized or {}).get("name") or (path[-1] if path else None)
    return str(name or "run")


def _merge(known: Attributes, seen: Mapping[str, Any]) -> Attributes:
    """Put together what LangChain and an instrumentation know of one call; the latter stood nearer to the model."""
    groups = tuple(group for group in _GROUPS if any(key.startswith(group) for key in seen))
    merged = {key: value for key, value in known.items() if not key.startswith(groups)}
    merged.update((key, value) for key, value in seen.items() if key != KIND)
    return merged
