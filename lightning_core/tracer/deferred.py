"""Answers of client libraries, whose models are built before threads read them.

OpenAI's and Anthropic's packages put off the building of their models until one is used. While pydantic before 2.14
builds a model, it takes the model's serializer away: another thread that writes an answer down meanwhile uses that of
the base class, which knows no fields. So of the first calls of rollouts that run at once, ``{}`` would be recorded.
https://github.com/pydantic/pydantic/pull/13438
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from packaging.version import Version
from pydantic import VERSION

__all__ = ["build_answers"]

# Threads wait for one another there.
_BUILDS_ALONE: Final = Version(VERSION) >= Version("2.14")
_OPENAI: Final = {
    "openai.types": ("Completion", "CreateEmbeddingResponse"),
    "openai.types.chat": ("ChatCompletion", "ChatCompletionChunk"),
    "openai.types.responses": ("Response",),
}
_ANSWERS: Final = {
    "openai": _OPENAI,
    "agents": _OPENAI,
    "anthropic": {"anthropic.types": ("Message", "TextBlock", "ToolUseBlock")},
}


def build_answers(library: str) -> None:
    """Build the models of a library's answers, where pydantic does not do that safely itself.

    Args:
        library: The library's module, which is imported. Of those that are not known nothing is built.
    """
    if _BUILDS_ALONE:
        return
    for module, names in _ANSWERS.get(library, {}).items():
        types = import_module(module)
        for name in names:
            # Not every version has all of them.
            model: Any = getattr(types, name, None)
            if model is not None:
                model.model_rebuild()
