"""The OpenAPI 3.1 document, made from the operations and from the models that read the requests."""

import json
from collections.abc import Iterable, Sequence
from functools import cache

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from chalicelib import __version__
from chalicelib.openapi.operation import TRACEPARENT, Operation
from chalicelib.openapi.response import Json

_DESCRIPTION = (
    "Orders of many shops on one database. The tenant comes from the verified token and from nowhere else. "
    "Amounts are exact decimals. Every error is an RFC 9457 problem. HEAD answers as GET, without a body. "
    "Answers may gain members later: ignore those that you do not know."
)


@cache
def render(*operations: Operation) -> str:
    """The document as JSON text."""
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Order API",
                "version": __version__,
                "description": _DESCRIPTION,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": ".", "description": "This host"}],
            "tags": _tags(operations),
            "security": [{"token": []}],
            "paths": _paths(operations),
            "components": {
                "parameters": {TRACEPARENT.name: TRACEPARENT.render()},
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "The ID token of a user who has a tenant.",
                    }
                },
                "headers": _headers(operations),
                "schemas": _schemas(operations),
            },
        }
    )


def _tags(operations: Iterable[Operation]) -> Sequence[Json]:
    descriptions = {operation.tag.name: operation.tag.description for operation in operations}
    return [{"name": name, "description": description} for name, description in descriptions.items()]


def _paths(operations: Iterable[Operation]) -> Json:
    paths: dict[str, Json] = {}
    for operation in operations:
        paths[operation.path] = {**paths.get(operation.path, {}), **operation.render()}
    return paths


def _headers(operations: Iterable[Operation]) -> Json:
    responses = [response for operation in operations for response in operation.all_responses()]
    headers = {header.name: header for response in responses for header in response.headers}
    return {name: headers[name].render() for name in sorted(headers)}


def _schemas(operations: Iterable[Operation]) -> dict[str, JsonSchemaValue]:
    models = _models(operations)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    schemas: dict[str, JsonSchemaValue] = definitions["$defs"]
    for model in models:
        for name, field in model.model_fields.items():
            # Pydantic leaves out a default that is made at run time. Ours are made from settings.
            if field.default_factory:
                default = field.get_default(call_default_factory=True, validated_data={})
                schemas[model.__name__]["properties"][name]["default"] = default
    return schemas


def _models(operations: Iterable[Operation]) -> list[type[BaseModel]]:
    contents = [
        content
        for operation in operations
        for content in (operation.request, *(response.content for response in operation.all_responses()))
    ]
    return list(dict.fromkeys(content.model for content in contents if content and content.model))


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that only repeat the names."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 (pydantic names it)
        return False
