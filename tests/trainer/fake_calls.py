"""Spans as the tracers write them for calls of a language model, without tracer and without model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning_core.emitter.context import emit_span

__all__ = ["answer", "emit_call"]


def answer(content: str = "ho", *, ids: bool = True, logprobs: bool = False) -> dict[str, Any]:
    """A raw answer, with token ids as vLLM gives them."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content},
    }
    body: dict[str, Any] = {"id": f"chatcmpl-{content}", "model": "answered", "choices": [choice]}
    if ids:
        body["prompt_token_ids"] = [1, 2]
        choice["token_ids"] = [3]
    if logprobs:
        choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
    return body


def emit_call(
    content: str = "ho",
    *,
    ids: bool = True,
    logprobs: bool = False,
    answered: bool = True,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Record a call in the current trace, in OpenInference's form, with further attributes."""
    request = {"model": "asked", "messages": [{"role": "user", "content": "hi"}]}
    attributes = {"openinference.span.kind": "LLM", "input.value": json.dumps(request), **(also or {})}
    if answered:
        attributes["output.value"] = json.dumps(answer(content, ids=ids, logprobs=logprobs))
    emit_span("ChatCompletion", attributes)
