"""Token ids as evidence: found where the engine put them, or marked missing; never made from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .messages import as_dict, as_list, parsed

__all__ = ["TokenIds", "prompt_token_ids", "response_logprobs", "response_token_ids"]


@dataclass(frozen=True)
class TokenIds:
    """The ids of a prompt's or a response's tokens.

    Attributes:
        ids: The ids as the engine gave them, or ``None``.
        source: Where in the span they were found.
        missing: Why there are none.
    """

    ids: list[int] | None = None
    source: str | None = None
    missing: str | None = None


_PROMPT_KEYS = ("prompt_token_ids", "gen_ai.prompt_token_ids", "llm.hosted_vllm.prompt_token_ids")
_RESPONSE_KEYS = ("response_token_ids", "gen_ai.response_token_ids", "llm.hosted_vllm.response_token_ids")
_TOKEN_AS_ID = "token_id:"
_STREAMED = "lightning.llm_proxy.streamed"


def _ids(value: Any) -> list[int] | None:
    """Return ``value`` if it is a non-empty list of token ids; JSON text is read, and ``[[1, 2]]`` unwrapped."""
    if isinstance(value, str):
        value = parsed(value)
    values = as_list(value)
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = as_list(values[0])
    if values and set(map(type, values)) == {int}:
        return list(values)
    return None


def _first_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = as_list(answer.get("choices"))
    return as_dict(choices[0]) if choices else {}


def prompt_token_ids(
    attributes: Mapping[str, Any], request: Mapping[str, Any], answer: Mapping[str, Any]
) -> TokenIds:
    """Find the ids of the prompt's tokens.

    They are taken from the engine's answer (vLLM's ``return_token_ids``), from the request if the prompt was sent
    as token ids, or from the span's own attributes.

    Args:
        attributes: The span's attributes.
        request: The raw request, if the span holds it.
        answer: The raw answer, if the span holds it.
    """
    if answer:
        ids = _ids(answer.get("prompt_token_ids"))
        if ids is not None:
            return TokenIds(ids, "prompt_token_ids of the raw answer")
        ids = _ids(_first_choice(answer).get("prompt_token_ids"))
        if ids is not None:
            return TokenIds(ids, "choices[0].prompt_token_ids of the raw answer")
    if isinstance(request.get("prompt"), list):
        ids = _ids(request["prompt"])
        if ids is not None:
            return TokenIds(ids, "prompt of the raw request")
    for key in _PROMPT_KEYS:
        if key in attributes and (ids := _ids(attributes[key])) is not None:
            return TokenIds(ids, key)
    return TokenIds(missing="the engine gave no prompt token ids")


def response_token_ids(
    attributes: Mapping[str, Any],
    answer: Mapping[str, Any],
    choice: Mapping[str, Any],
    output_tokens: int | None,
) -> TokenIds:
    """Find the ids of the sampled tokens of one choice.

    They are taken from the choice's ``token_ids`` (vLLM, also through LiteLLM), from ids that come with the
    log-probabilities (llama.cpp; vLLM's ``return_tokens_as_token_ids``), or from the span's own attributes. Ids that
    were pieced together, of a stream or of log-probabilities, must be as many as the tokens that the engine counted:
    else some were dropped on the way, or several were merged into one entry, as llama.cpp does with the pieces of a
    character, and all count as missing.

    Args:
        attributes: The span's attributes.
        answer: The raw answer, if the span holds it.
        choice: The choice of it that is meant.
        output_tokens: How many tokens the engine counted for this choice, if known.
    """
    # A gateway puts the answer of a stream together, and writes it as if it had not been one.
    streamed = answer.get("object") == "chat.completion.chunk" or attributes.get(_STREAMED) is True
    extras = as_dict(choice.get("provider_specific_fields"))
    candidates = (
        ("token_ids", choice, streamed),
        ("provider_specific_fields.token_ids", extras, streamed),
        ("logprobs", choice, True),
    )
    short: str | None = None
    for name, holder, pieced in candidates:
        ids = _ids(holder.get("token_ids")) if name != "logprobs" else _ids(_ids_of_logprobs(holder))
        if ids is None:
            continue
        if pieced and output_tokens is not None and len(ids) != output_tokens:
            short = f"the engine counted {output_tokens} response tokens, but {name} holds {len(ids)} ids"
            continue
        return TokenIds(ids, f"{name} of the raw answer's choice")
    for key in _RESPONSE_KEYS:
        if key in attributes and (ids := _ids(attributes[key])) is not None:
            return TokenIds(ids, key)
    return TokenIds(missing=short or "the engine gave no response token ids")


def _logprob_entries(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [as_dict(entry) for entry in as_list(as_dict(choice.get("logprobs")).get("content"))]


def _ids_of_logprobs(choice: Mapping[str, Any]) -> list[Any] | None:
    entries = _logprob_entries(choice)
    if entries:
        found = [entry.get("id", _id_in_text(entry.get("token"))) for entry in entries]
    else:
        found = [_id_in_text(token) for token in as_list(as_dict(choice.get("logprobs")).get("tokens"))]
    return found if found and None not in found else None


def _id_in_text(token: Any) -> int | None:
    if isinstance(token, str) and token.startswith(_TOKEN_AS_ID) and token[len(_TOKEN_AS_ID) :].isdecimal():
        return int(token[len(_TOKEN_AS_ID) :])
    return None


def response_logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Return the log-probability of each sampled token of a choice, or ``None`` if one is missing."""
    entries = _logprob_entries(choice)
    if entries:
        values: list[Any] = [entry.get("logprob") for entry in entries]
    else:
        values = as_list(as_dict(choice.get("logprobs")).get("token_logprobs"))
    if values and set(map(type, values)) <= {int, float}:
        return [float(value) for value in values]
    return None
