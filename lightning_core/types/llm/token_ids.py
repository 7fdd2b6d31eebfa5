"""Token ids as evidence: found where the engine put them, or marked missing; never made from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

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


def _found(ids: list[int], source: str) -> TokenIds:
    # The constructor of a frozen dataclass takes twice as long, and this is called for every span.
    found = object.__new__(TokenIds)
    found.__dict__.update(ids=ids, source=source, missing=None)
    return found


_NO_PROMPT_IDS = TokenIds(missing="the engine gave no prompt token ids")
_NO_RESPONSE_IDS = TokenIds(missing="the engine gave no response token ids")
_PROMPT_KEYS = ("prompt_token_ids", "gen_ai.prompt_token_ids", "llm.hosted_vllm.prompt_token_ids")
_RESPONSE_KEYS = ("response_token_ids", "gen_ai.response_token_ids", "llm.hosted_vllm.response_token_ids")
_TOKEN_AS_ID = "token_id:"
_logprob = itemgetter("logprob")
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
            return _found(ids, "prompt_token_ids of the raw answer")
        ids = _ids(_first_choice(answer).get("prompt_token_ids"))
        if ids is not None:
            return _found(ids, "choices[0].prompt_token_ids of the raw answer")
    if isinstance(request.get("prompt"), list):
        ids = _ids(request["prompt"])
        if ids is not None:
            return _found(ids, "prompt of the raw request")
    for key in _PROMPT_KEYS:
        if key in attributes and (ids := _ids(attributes[key])) is not None:
            return _found(ids, key)
    return _NO_PROMPT_IDS


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
    short: str | None = None
    if choice:
        # A gateway puts the answer of a stream together, and writes it as if it had not been one.
        streamed = answer.get("object") == "chat.completion.chunk" or attributes.get(_STREAMED) is True
        for name, find, pieced in (
            ("token_ids", _own_ids, streamed),
            ("provider_specific_fields.token_ids", _extra_ids, streamed),
            ("logprobs", _ids_of_logprobs, True),
        ):
            ids = _ids(find(choice))
            if ids is None:
                continue
            if pieced and output_tokens is not None and len(ids) != output_tokens:
                short = f"the engine counted {output_tokens} response tokens, but {name} holds {len(ids)} ids"
                continue
            return _found(ids, f"{name} of the raw answer's choice")
    for key in _RESPONSE_KEYS:
        if key in attributes and (ids := _ids(attributes[key])) is not None:
            return _found(ids, key)
    return TokenIds(missing=short) if short is not None else _NO_RESPONSE_IDS


def _own_ids(choice: Mapping[str, Any]) -> Any:
    return choice.get("token_ids")


def _extra_ids(choice: Mapping[str, Any]) -> Any:
    return as_dict(choice.get("provider_specific_fields")).get("token_ids")


def _logprob_entries(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of log-probabilities, one for each token; none if one of them is no entry."""
    entries = as_list(as_dict(choice.get("logprobs")).get("content"))
    return entries if set(map(type, entries)) <= {dict} else []


def _ids_of_logprobs(choice: Mapping[str, Any]) -> list[Any] | None:
    entries = _logprob_entries(choice)
    if entries:
        if "id" not in entries[0] and _id_in_text(entries[0].get("token")) is None:
            return None
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
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        return None
    logprobs = cast("dict[str, Any]", given)
    values: list[Any] = as_list(logprobs.get("content"))
    try:
        values = list(map(_logprob, values)) if values else as_list(logprobs.get("token_logprobs"))
    except (KeyError, TypeError):
        return None
    kinds = set(map(type, values))
    if kinds == {float}:
        return values
    return [float(value) for value in values] if kinds and kinds <= {int, float} else None
