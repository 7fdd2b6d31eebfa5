"""The HTTP protocol of v0.1: paths, headers, and how values are written and read."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from lightning_core.errors import ConfigurationError, UnserializableValueError
from lightning_core.types import GenericResponse, ResourcesUpdate, Rollout, Task

__all__ = [
    "CLIENT_HEADER",
    "LATEST_PATH",
    "REQUEST_HEADER",
    "RESOURCES_PATH",
    "ROLLOUT_PATH",
    "TASK_PATH",
    "TOKEN_VARIABLE",
    "TaskIfAny",
    "check_token",
    "jsonable",
    "write",
]

TASK_PATH: Final = "/task"
RESOURCES_PATH: Final = "/resources"
LATEST_PATH: Final = "/resources/latest"
ROLLOUT_PATH: Final = "/rollout"

CLIENT_HEADER: Final = "Lightning-Client"
REQUEST_HEADER: Final = "Lightning-Request"
"""With both of these a client may ask for a task again whose answer it has not got. Servers and clients of others do
without them; a task whose answer is lost is then handed out again once it is stale."""

TOKEN_VARIABLE: Final = "LIGHTNING_CORE_LEGACY_TOKEN"


class TaskIfAny(BaseModel):
    """The answer to ``GET /task``."""

    is_available: bool
    task: Task | None = None


# Pydantic builds the core's models when they are first used, which two threads must not do at once.
for _model in (GenericResponse, ResourcesUpdate, Rollout, Task):
    _model.model_rebuild()


def _plain(value: Any) -> Any:
    # NumPy's arrays and numbers, tensors.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise PydanticSerializationError(f"it holds a {type(value).__name__}, which JSON has no form for")


def write(model: BaseModel) -> bytes:
    """Write a model as JSON.

    Raises:
        UnserializableValueError: If JSON cannot hold it.
    """
    try:
        return model.model_dump_json(fallback=_plain).encode()
    except (ValueError, TypeError) as error:
        raise UnserializableValueError(f"a {type(model).__name__} cannot be sent: {error}") from None


def jsonable(value: Any, place: str) -> Any:
    """Return a value as the JSON values that the other side will get.

    Raises:
        UnserializableValueError: If JSON cannot hold it.
    """
    try:
        return to_jsonable_python(value, fallback=_plain)
    except (ValueError, TypeError) as error:
        raise UnserializableValueError(f"{place} cannot be sent to a client: {error}") from None


def check_token(token: str | None) -> None:
    """Refuse a token that no header can carry, or that is too short to keep anybody out.

    Raises:
        ConfigurationError: If it is such a one.
    """
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable()):
        raise ConfigurationError(
            "a token has at least 8 characters, all of them printable ASCII; look at token=… or the variable "
            f"{TOKEN_VARIABLE}"
        )
