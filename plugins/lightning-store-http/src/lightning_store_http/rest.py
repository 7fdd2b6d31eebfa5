"""The REST routes, made from the table of operations."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeAlias, Union, cast, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_core.errors import UnserializableValueError

from .arguments import Arguments
from .bodies import content_type, read_body
from .failures import RequestError
from .operations import OPERATIONS, Operation
from .service import Service
from .wire import API_PATH, JSON

__all__ = ["adapter", "list_fields", "rest_routes"]

_Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def rest_routes(service: Service) -> list[Route]:
    """Make a route for each path, which knows all of its methods."""
    paths: dict[str, dict[str, _Endpoint]] = {}
    for operation in OPERATIONS.values():
        if operation.method is not None:
            paths.setdefault(operation.path, {})[operation.method] = _endpoint(service, operation)
    return [
        Route(API_PATH + path, _choose(endpoints), methods=list(endpoints))
        for path, endpoints in paths.items()
    ]


def _choose(endpoints: dict[str, _Endpoint]) -> _Endpoint:
    async def endpoint(request: Request) -> Response:
        # A HEAD is a GET of which the body is not sent.
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def _endpoint(service: Service, operation: Operation) -> _Endpoint:
    async def endpoint(request: Request) -> Response:
        if operation.method == "GET":
            arguments = operation.arguments.model_validate(_read_query(request, operation.arguments))
        else:
            given = await _read_json(request, operation, service.limits.max_body_bytes)
            # Written and read again: only from JSON are numbers strictly numbers, and lists tuples.
            arguments = operation.arguments.model_validate_json(to_json(given), strict=True)
        result = (await service.perform(operation, arguments, request.receive)).result
        if operation.result is None:
            return Response(status_code=204)
        if result is None and operation.missing is not None:
            raise RequestError(404, operation.missing, kind="NotFound")
        return Response(_write(operation, result), media_type=JSON)

    return endpoint


def _read_query(request: Request, model: type[Arguments]) -> dict[str, Any]:
    lists = list_fields(model)
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in lists:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise RequestError(422, f"{name}: it is given twice")
        else:
            given[name] = value
    return _with_path(request, given)


async def _read_json(request: Request, operation: Operation, limit: int) -> dict[str, Any]:
    body = await read_body(request.scope, request.receive, limit)
    if request.query_params:
        raise RequestError(
            422, f"{next(iter(request.query_params))[:100]}: arguments of this request go into its body"
        )
    if not body:
        return _with_path(request, {})
    if content_type(request.scope) != JSON:
        raise RequestError(415, f"the body must be {JSON}")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is no JSON: {error}") from None
    if operation.body is not None:
        return _with_path(request, {operation.body: value})
    if not isinstance(value, dict):
        raise RequestError(422, "the body must be a JSON object")
    return _with_path(request, cast("dict[str, Any]", value))


def _with_path(request: Request, given: dict[str, Any]) -> dict[str, Any]:
    clash = given.keys() & request.path_params.keys()
    if clash:
        raise RequestError(422, f"{min(clash)}: it is given by the path already")
    return given | request.path_params


@cache
def list_fields(model: type[Arguments]) -> frozenset[str]:
    """Return the names of the arguments that are lists, and so may come several times in a query."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        options = (
            get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        )
        if any(get_origin(option) is list for option in options):
            found.add(name)
    return frozenset(found)


@cache
def adapter(operation_name: str) -> TypeAdapter[Any]:
    """Return what writes the results of an operation."""
    return TypeAdapter(OPERATIONS[operation_name].result)


def _write(operation: Operation, result: Any) -> bytes:
    try:
        return adapter(operation.name).dump_json(result)
    except PydanticSerializationError as error:
        raise UnserializableValueError(f"the store holds what JSON cannot: {error}") from None
