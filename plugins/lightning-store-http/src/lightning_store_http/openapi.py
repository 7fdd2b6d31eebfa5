"""The OpenAPI document, made from the table of operations."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from lightning_core.types import resource_kinds

from .arguments import Arguments
from .batch import Envelope
from .operations import OPERATIONS, Operation
from .wire import API_PATH, BATCH_PATH, EXPECT_HEADER, JSON, MSGPACK

__all__ = ["openapi_document"]

_SCHEMAS: Final = "#/components/schemas/"
_ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "description": "Name of the error, such as UnknownRolloutError."},
                "message": {"type": "string", "description": "What is wrong, and what to do."},
            },
            "required": ["type", "message"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}
_ERRORS: Final = {
    400: "The request is not what it says, such as a body that is no JSON.",
    401: "A valid token is needed.",
    404: "There is no such thing.",
    405: "The path has other methods.",
    409: "The rollout, attempt or span cannot be changed like that.",
    413: "There is more in the request than the server takes.",
    415: "The body is of another media type, or compressed in an unknown way.",
    421: "This is another store than the one that the request is for.",
    422: "An argument is missing, unknown or wrong.",
    500: "Something is wrong with the server, whose log tells more.",
    503: "The server or its store cannot be reached for now.",
}
_DESCRIPTION: Final = f"""\
The store of lightning-core: rollouts, attempts, spans, resources, workers and runs.

Every answer has the header `lightning-store-nonce`, which tells one store from another. A request with the header
`{EXPECT_HEADER}` is carried out only by the store of that nonce. `POST {API_PATH}/traces` takes OTLP traces, as
OpenTelemetry's exporters send them.
"""


class _Schemas(GenerateJsonSchema):
    """Describes resources by their kinds; pydantic itself cannot look into the function that reads them."""

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        kinds = resource_kinds().values()
        return {"anyOf": [self.generate_inner(kind.__pydantic_core_schema__) for kind in kinds]}


def openapi_document(version: str) -> dict[str, Any]:
    """Make the document.

    Args:
        version: Of the package.
    """
    served = [operation for operation in OPERATIONS.values() if operation.method is not None]
    inputs: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (operation.name, "validation", TypeAdapter(operation.arguments)) for operation in served
    ]
    inputs.append(("batch", "validation", TypeAdapter(Envelope)))
    outputs: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (operation.name, "serialization", TypeAdapter(operation.result))
        for operation in served
        if operation.result is not None
    ]
    schemas, definitions = TypeAdapter.json_schemas(
        [*inputs, *outputs], ref_template=_SCHEMAS + "{model}", schema_generator=_Schemas
    )
    components: dict[str, Any] = dict(definitions.get("$defs", {}))

    def resolved(name: str, mode: Any) -> dict[str, Any]:
        schema: dict[str, Any] = schemas[name, mode]
        reference = schema.get("$ref")
        return components[reference.removeprefix(_SCHEMAS)] if reference else schema

    paths: dict[str, dict[str, Any]] = {}
    for operation in served:
        assert operation.method is not None
        output = schemas.get((operation.name, "serialization"))
        described = _describe(operation, resolved(operation.name, "validation"), output)
        paths.setdefault(API_PATH + operation.path, {})[operation.method.lower()] = described
    paths[BATCH_PATH] = {"post": _batch(schemas["batch", "validation"])}
    paths[f"{API_PATH}/health"] = {
        "get": _plain(
            "health", "Whether the server is there; needs no token.", ["nonce", "version"], secured=False
        )
    }
    paths[f"{API_PATH}/store"] = {
        "get": _plain(
            "store", "What the server has.", ["nonce", "version", "durable"], durable={"type": "boolean"}
        )
    }
    used = {model.__name__ for model in _subclasses(Arguments)} - {Envelope.__name__}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lightning-core store", "version": version, "description": _DESCRIPTION},
        "paths": dict(sorted(paths.items())),
        "components": {
            # Those of arguments are spelled out where they are used.
            "schemas": {"Error": _ERROR}
            | {name: one for name, one in components.items() if name not in used},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _describe(
    operation: Operation, arguments: dict[str, Any], output: dict[str, Any] | None
) -> dict[str, Any]:
    properties: dict[str, Any] = arguments.get("properties", {})
    required: set[str] = set(arguments.get("required", ()))
    in_path = re.findall(r"{(\w+)}", operation.path)
    rest = {name: schema for name, schema in properties.items() if name not in in_path}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": properties[name]} for name in in_path
    ]
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.method == "GET":
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": _in_query(schema)}
            for name, schema in rest.items()
        ]
    elif operation.body is not None:
        described["requestBody"] = _body(rest[operation.body], required=True)
    elif rest:
        needed = sorted(required & rest.keys())
        schema: dict[str, Any] = {"type": "object", "properties": rest, "additionalProperties": False}
        if needed:
            schema["required"] = needed
        described["requestBody"] = _body(schema, required=bool(needed))
    if parameters:
        described["parameters"] = parameters
    success = (
        {"204": {"description": "Done."}} if output is None else {"200": _content("The result.", output)}
    )
    return described | {"responses": success | _error_answers(secured=True)}


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe an argument in a query, where there is no null: it is left out instead."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) != 1:
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return kept | options[0]


def _batch(schema: dict[str, Any]) -> dict[str, Any]:
    pair: dict[str, Any] = {"type": "array", "items": {}, "minItems": 2, "maxItems": 2}
    answer = {"type": "array", "items": pair}
    return {
        "operationId": "batch",
        "summary": "Carry out many operations at once; each has a pair in the answer: whether it is good, and what.",
        "requestBody": {"required": True, "content": {JSON: {"schema": schema}, MSGPACK: {"schema": schema}}},
        "responses": {
            "200": {
                "description": "An answer for each operation, in order.",
                "content": {JSON: {"schema": answer}, MSGPACK: {"schema": answer}},
            }
        }
        | _error_answers(secured=True),
    }


def _plain(
    name: str, summary: str, fields: list[str], *, secured: bool = True, **others: dict[str, Any]
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {field: others.get(field, {"type": "string"}) for field in fields},
        "required": fields,
        "additionalProperties": False,
    }
    described: dict[str, Any] = {"operationId": name, "summary": summary}
    if not secured:
        described["security"] = []
    return described | {
        "responses": {"200": _content("The answer.", schema)} | _error_answers(secured=secured)
    }


def _error_answers(*, secured: bool) -> dict[str, Any]:
    return {
        str(status): _content(text, {"$ref": f"{_SCHEMAS}Error"})
        for status, text in _ERRORS.items()
        if secured or status != 401
    }


def _body(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"required": required, "content": {JSON: {"schema": schema}}}


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [one for child in model.__subclasses__() for one in (child, *_subclasses(child))]
