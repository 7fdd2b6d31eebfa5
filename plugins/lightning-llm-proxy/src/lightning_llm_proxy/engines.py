"""What engines are asked for on behalf of a recording, where they put it, and how it is hidden from who did not ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, cast

from .settings import EngineName

__all__ = ["ENGINE_OF_OWNER", "Wishes", "gather", "hide", "wishes_for"]

ENGINE_OF_OWNER: Final[dict[str, EngineName]] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "openai": "openai",
    "system": "openai",
    "openai-internal": "openai",
}
"""What an engine writes as ``owned_by`` into its list of models, to the engine."""

_CHAT: Final = "chat/completions"
_TEXT: Final = "completions"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is added to a request.

    Attributes:
        changes: Fields of the request, with the values that they are given; ``None`` to leave one out.
        ids: The client did not ask for token ids.
        logprobs: It did not ask for log-probabilities.
        usage: It did not ask for the usage of a stream.
        whole: It asked for a stream, and the engine is asked for a whole answer.
    """

    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    ids: bool = False
    logprobs: bool = False
    usage: bool = False
    whole: bool = False


_NONE: Final = Wishes()


def wishes_for(
    engine: EngineName, path: str, request: dict[str, Any], *, exact_streams: bool = False
) -> Wishes:
    """Say what to ask an engine for, besides what the client asks for itself.

    Args:
        engine: The engine.
        path: The API, such as ``chat/completions``.
        request: The client's request.
        exact_streams: Whether llama.cpp is asked for whole answers in place of streams.
    """
    if path not in (_CHAT, _TEXT) or engine in ("none", "auto"):
        return _NONE
    changes: dict[str, Any] = {}
    ids = logprobs = usage = False
    stream = bool(request.get("stream"))
    whole = stream and exact_streams and engine == "llamacpp"
    if engine != "openai":
        # llama.cpp gives its list of ids in whole answers only. In streams they come with the log-probabilities.
        names = () if engine == "llamacpp" and stream and not whole else _ID_FIELDS[engine]
        for name in names:
            if not request.get(name):
                changes[name] = True
                ids = True
        logprobs = _ask_logprobs(engine, path, request, changes)
    if whole:
        changes |= {"stream": False, "stream_options": None}
    elif stream:
        options = request.get("stream_options")
        options = cast("dict[str, Any]", options) if isinstance(options, dict) else {}
        if not options.get("include_usage"):
            changes["stream_options"] = {**options, "include_usage": True}
            usage = True
    return Wishes(changes, ids, logprobs, usage, whole) if changes else _NONE


_ID_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "vllm": ("return_token_ids",),
    "sglang": ("return_prompt_token_ids", "return_meta_info"),
    "llamacpp": ("return_tokens", "verbose"),
}


def _ask_logprobs(engine: EngineName, path: str, request: dict[str, Any], changes: dict[str, Any]) -> bool:
    """Ask for log-probabilities; says whether that was needed."""
    if path == _TEXT:
        # With an echo they would be those of the prompt too, which takes an engine far longer.
        if request.get("logprobs") is not None or request.get("echo"):
            return False
        changes["logprobs"] = 1
        return True
    if request.get("logprobs"):
        return False
    changes["logprobs"] = True
    if engine == "llamacpp" and not request.get("top_logprobs"):
        # It gives none for 0.
        changes["top_logprobs"] = 1
    return True


def gather(engine: EngineName, answer: dict[str, Any]) -> bool:
    """Bring an engine's token ids to where vLLM has them, ``choices[].token_ids``; says whether anything was moved.

    SGLang has them in ``meta_info`` of a choice; llama.cpp in ``__verbose``, beside a copy of the prompt and of all its
    settings, which is left out.

    Args:
        engine: The engine.
        answer: Its answer. It is changed, but none of its parts is.
    """
    if engine == "sglang":
        return _gather_meta_info(answer)
    verbose = answer.pop("__verbose", None) if engine == "llamacpp" else None
    if not isinstance(verbose, dict):
        return False
    ids = cast("dict[str, Any]", verbose).get("tokens")
    choices = answer.get("choices")
    # Of several choices, it has the first one's only.
    if isinstance(choices, list) and choices and isinstance(ids, list) and ids:
        first, *others = cast("list[Any]", choices)
        if isinstance(first, dict):
            answer["choices"] = [{**cast("dict[str, Any]", first), "token_ids": ids}, *others]
    return True


def _gather_meta_info(answer: dict[str, Any]) -> bool:
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return False
    gathered = [_with_ids(choice) for choice in cast("list[Any]", choices)]
    if gathered == choices:
        return False
    answer["choices"] = gathered
    return True


def _with_ids(choice: Any) -> Any:
    meta = cast("dict[str, Any]", choice).get("meta_info") if isinstance(choice, dict) else None
    entries = cast("dict[str, Any]", meta).get("output_token_logprobs") if isinstance(meta, dict) else None
    if not isinstance(entries, list):
        return cast("Any", choice)
    # Each is a log-probability, an id, and perhaps the text.
    return {**cast("dict[str, Any]", choice), "token_ids": [entry[1] for entry in cast("list[Any]", entries)]}


def hide(answer: dict[str, Any], wishes: Wishes) -> bool:
    """Take out of an answer, or a chunk of a stream, what the client did not ask for; says whether anything was there.

    Args:
        answer: It is changed; lists and dicts within that are taken out stay as they are.
        wishes: What was asked for on behalf of the recording.
    """
    changed = False
    if wishes.ids:
        for name in ("prompt_token_ids", "__verbose"):
            changed |= answer.pop(name, None) is not None
    choices = answer.get("choices")
    for choice in cast("list[Any]", choices) if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            changed |= _hide_in_choice(cast("dict[str, Any]", choice), wishes)
    if wishes.usage and "usage" in answer and (answer["usage"] is None or not choices):
        del answer["usage"]
        changed = True
    return changed


def _hide_in_choice(choice: dict[str, Any], wishes: Wishes) -> bool:
    changed = False
    if wishes.ids:
        for name in ("token_ids", "prompt_token_ids", "meta_info"):
            if name in choice:
                del choice[name]
                changed = True
    if wishes.logprobs and choice.get("logprobs") is not None:
        choice["logprobs"] = None
        changed = True
    return changed
