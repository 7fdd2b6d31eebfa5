"""Errors on their way over the network: by class name and message, never as a traceback."""

from __future__ import annotations

import logging
import uuid
from typing import Any, Final

from pydantic import ValidationError

from lightning_core import errors
from lightning_core.errors import (
    ConfigurationError,
    FinalRolloutError,
    InvalidTransitionError,
    LightningError,
    ResourceError,
    SpanConflictError,
    StoreClosedError,
    StoreError,
    StoreSchemaError,
    StoreUnavailableError,
    UnknownAttemptError,
    UnknownRolloutError,
    UnserializableValueError,
)

__all__ = ["RequestError", "describe", "restore", "status_of"]

logger = logging.getLogger(__name__)

_STATUSES: Final[dict[type[LightningError], int]] = {
    UnknownRolloutError: 404,
    UnknownAttemptError: 404,
    FinalRolloutError: 409,
    InvalidTransitionError: 409,
    SpanConflictError: 409,
    UnserializableValueError: 422,
    ConfigurationError: 422,
    ResourceError: 422,
    StoreClosedError: 503,
    StoreUnavailableError: 503,
    StoreSchemaError: 500,
}


class RequestError(StoreError):
    """A request that the server refuses before it reaches the store.

    Attributes:
        status: The HTTP status.
        kind: The ``type`` of the answer.
        headers: Further headers of the answer.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "RequestError", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}


def status_of(error: BaseException) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, ValidationError):
        return 422
    for cls in type(error).__mro__:
        if cls in _STATUSES:
            return _STATUSES[cls]
    return 500


def describe(error: BaseException) -> dict[str, str]:
    """Describe an error for a client.

    What lightning-core raises on purpose is told as it is. Of anything else only an id is told, under which the
    server's log has the traceback.
    """
    if isinstance(error, RequestError):
        return {"type": error.kind, "message": str(error)}
    if isinstance(error, ValidationError):
        return {"type": "ConfigurationError", "message": _explain(error)}
    if isinstance(error, LightningError):
        name = next(cls.__name__ for cls in type(error).__mro__ if hasattr(errors, cls.__name__))
        return {"type": name, "message": str(error)}
    number = uuid.uuid4().hex[:12]
    logger.error("error %s while answering a request", number, exc_info=error)
    return {"type": "InternalError", "message": f"internal error {number}; the server's log tells more"}


def restore(description: Any) -> LightningError:
    """Make the error again that :func:`describe` described."""
    try:
        kind, message = str(description["type"]), str(description["message"])
    except (TypeError, KeyError):
        return StoreError("the server answered with an error that it did not describe")
    cls = getattr(errors, kind, None)
    if isinstance(cls, type) and issubclass(cls, LightningError):
        return cls(message)
    return StoreError(message)


def _explain(error: ValidationError) -> str:
    """Say which fields are wrong, without repeating their values."""
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        place = ".".join(str(part) for part in problem["loc"])
        parts.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return "; ".join(parts)
