"""The server's answers: the four requests of v0.1, and plain errors for everything else."""

from __future__ import annotations

import hmac
import logging
import re
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ValidationError

from lightning_core.errors import InvalidOutcomeError, StoreUnavailableError, UnknownRolloutError
from lightning_core.types import GenericResponse, ResourcesUpdate, Rollout

from .protocol import (
    CLIENT_HEADER,
    LATEST_PATH,
    REQUEST_HEADER,
    RESOURCES_PATH,
    ROLLOUT_PATH,
    TASK_PATH,
    TaskIfAny,
    write,
)
from .store import Reception, ServerDataStore

__all__ = ["make_app"]

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MESSAGES: Final[dict[Reception, str]] = {
    "counted": "received",
    "repeated": "was reported before; the first report counts, and this one does not",
    "late": "comes too late: the task was given up before, and the report does not count",
}
_REQUESTS: Final = f"GET {TASK_PATH}, GET {LATEST_PATH}, GET {RESOURCES_PATH}/{{id}} and POST {ROLLOUT_PATH}"


class _Refusal(Exception):
    """A request is not carried out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def make_app(store: ServerDataStore, *, token: str | None, max_body_bytes: int) -> web.Application:
    """Make the application that serves a store; it must run on the bridge's loop.

    Args:
        store: What it serves.
        token: What clients must show; ``None`` lets everybody in.
        max_body_bytes: The largest body of a request, in bytes.
    """
    answers = _Answers(store)
    app = web.Application(middlewares=[_make_guard(token)], client_max_size=max_body_bytes)
    app.add_routes(
        [
            # A HEAD would claim a task as well.
            web.get(TASK_PATH, answers.get_task, allow_head=False),
            web.get(LATEST_PATH, answers.get_latest_resources),
            web.get(f"{RESOURCES_PATH}/{{id}}", answers.get_resources),
            web.post(ROLLOUT_PATH, answers.post_rollout),
        ]
    )
    return app


def _make_guard(token: str | None) -> Middleware:
    """Make what lets in those who may come, and answers errors plainly."""
    expected = token.encode() if token is not None else None

    def admit(request: web.Request) -> None:
        if expected is None:
            return
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
            raise _Refusal(401, "a valid token is needed: Authorization: Bearer …")

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            admit(request)
            return await handler(request)
        except _Refusal as refusal:
            return _error(refusal.status, refusal.message)
        except web.HTTPRequestEntityTooLarge:
            return _error(
                413, f"the body is larger than {request.client_max_size} bytes, the most that is taken"
            )
        except web.HTTPException as error:
            if error.status in (404, 405):
                return _error(error.status, f"this is a v0.1 server of tasks, which answers {_REQUESTS}")
            return _error(error.status, error.reason)
        except StoreUnavailableError as error:
            logger.error("the store of the server is away: %s", error)
            return _error(503, "the store is away; try again")
        except Exception:
            # What it says is for the one who runs the server, not for everybody who can reach it.
            logger.exception("%s %s failed", request.method, request.path)
            return _error(500, "the server failed; its log says why")

    return guard


class _Answers:
    def __init__(self, store: ServerDataStore) -> None:
        self._store = store

    async def get_task(self, request: web.Request) -> web.Response:
        task = await self._store.claim(_header(request, CLIENT_HEADER), _header(request, REQUEST_HEADER))
        return _answer(TaskIfAny(is_available=task is not None, task=task))

    async def get_latest_resources(self, request: web.Request) -> web.Response:
        found = await self._store.get_latest_resources()
        return _resources(found, "no resources have been set on this server yet (update_resources)")

    async def get_resources(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        return _resources(
            await self._store.get_resources_by_id(name), f"this server has no resources {name[:100]!r}"
        )

    async def post_rollout(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            # A web page that somebody has open could send it otherwise.
            raise _Refusal(415, "a report is sent with the header Content-Type: application/json")
        try:
            rollout = Rollout.model_validate_json(await request.read())
        except ValidationError as error:
            raise _bad_rollout(error) from None
        try:
            reception = await self._store.receive(rollout)
        except UnknownRolloutError as error:
            raise _Refusal(404, str(error)) from None
        except InvalidOutcomeError as error:
            raise _Refusal(422, str(error)) from None
        message = f"rollout {rollout.rollout_id} {_MESSAGES[reception]}"
        return _answer(GenericResponse(message=message, data={"counted": reception == "counted"}))


def _header(request: web.Request, name: str) -> str | None:
    value = request.headers.get(name)
    if value is not None and not _NAME.fullmatch(value):
        raise _Refusal(400, f"the header {name} has 1 to 64 letters, digits, dots, dashes and underscores")
    return value


def _bad_rollout(error: ValidationError) -> _Refusal:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if problem["type"] == "json_invalid":
        return _Refusal(400, f"the body is no JSON: {problem['msg']}")
    where = ".".join(map(str, problem["loc"]))
    return _Refusal(422, f"the body is no rollout: {where + ': ' if where else ''}{problem['msg']}")


def _resources(found: ResourcesUpdate | None, otherwise: str) -> web.Response:
    if found is None:
        raise _Refusal(404, otherwise)
    return _answer(found)


def _answer(model: BaseModel, status: int = 200) -> web.Response:
    return web.Response(body=write(model), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    response = _answer(GenericResponse(status="error", message=message), status)
    if status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return response
