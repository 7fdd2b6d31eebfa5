"""The proxy's own answers: refusals in the form of the API that was called, the list of models, and its health."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from .jsons import write_json

__all__ = ["Refusal", "list_models", "plain"]

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    502: "upstream_unreachable",
    503: "proxy_stopping",
    504: "upstream_timeout",
}


class Refusal(Exception):
    """The proxy itself answers with an error.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def kind(self) -> str:
        """A word for the error."""
        return _KINDS.get(self.status, "error")

    def body(self) -> bytes:
        """The body, which clients of OpenAI's and of Anthropic's API both understand."""
        error = {"message": self.message, "type": self.kind, "code": self.status, "param": None}
        return write_json({"type": "error", "error": error})

    def response(self) -> web.Response:
        """The answer."""
        return web.Response(body=self.body(), status=self.status, content_type="application/json")


def plain(value: dict[str, Any]) -> web.Response:
    """Make an answer that is a JSON object."""
    return web.Response(body=write_json(value), content_type="application/json")


def list_models(names: Iterable[str]) -> dict[str, Any]:
    """Return the list of models as OpenAI's API has it."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": "lightning-core"} for name in names
        ],
    }
