"""The OpenAPI 3.1 document, made from the models that read the requests."""

import json
from functools import cache
from itertools import groupby
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from chalicelib.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    Internal,
    Invalid,
    MalformedRequest,
    MissingTenant,
    NotFound,
    PayloadTooLarge,
    Problem,
    RateLimited,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from chalicelib.openapi.models import Health, Json, ProblemDetails
from chalicelib.orders.models import PLACED, SEED, OneOrder, OrderCreated, OrderPage
from chalicelib.orders.new_order import NewOrder
from chalicelib.settings.currency import default_currency

VERSION = "1.0.0"


class _Untitled(GenerateJsonSchema):
    """Without the titles that only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


@cache
def document() -> str:
    """The document as JSON text."""
    models = (NewOrder, OrderCreated, OneOrder, OrderPage, ProblemDetails, Health)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    schemas = definitions["$defs"]
    schemas["NewOrder"]["properties"]["currency"]["default"] = default_currency()
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Order API",
                "version": VERSION,
                "description": _DESCRIPTION,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": ".", "description": "This host"}],
            "tags": [
                {"name": "orders", "description": "Placing and reading orders"},
                {"name": "operations", "description": "For load balancers, operators and tools"},
            ],
            "security": [{"token": []}],
            "paths": {
                "/orders": _traced(_limited({"post": _place_order(), **_readable(_list_orders())})),
                "/orders/{order_id}": _traced(_limited(_readable(_get_order()))),
                "/health": _traced(_readable(_health())),
                "/health/ready": _traced(_readable(_ready())),
                "/openapi.json": _traced(_readable(_openapi())),
            },
            "components": {
                "parameters": {"traceparent": _TRACEPARENT},
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "The ID token of a user who has a tenant.",
                    }
                },
                "headers": _HEADERS,
                "schemas": schemas,
            },
        }
    )


def _place_order() -> Json:
    return {
        "operationId": "placeOrder",
        "tags": ["orders"],
        "summary": "Place an order",
        "description": "With an `Idempotency-Key` the same order can be sent again and is placed once. "
        "Without a `Content-Type` the body is taken for JSON.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "1 to 255 visible ASCII characters, bare or as a quoted string. "
                "Kept for at least 24 hours, per tenant and user.",
                "schema": {
                    "type": "string",
                    "pattern": r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$',
                },
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("NewOrder"), "example": SEED}},
        },
        "responses": {
            "201": {
                **_json(
                    "The order",
                    "OrderCreated",
                    {"message": "Order created successfully", "order": PLACED},
                    "Location",
                    "ETag",
                    "Idempotent-Replayed",
                ),
                "links": {"order": _link("getOrder", order_id="$response.body#/order/order_id")},
            },
            **_problems(
                *_FOR_EVERYBODY,
                *_FOR_CALLERS,
                MalformedRequest(errors=[("items", "appears more than once: send it once")]),
                IdempotencyInFlight(),
                PayloadTooLarge(),
                UnsupportedMediaType(),
                Invalid(errors=[("items[0].quantity", "must be a whole number from 1 to 1,000,000")]),
                IdempotencyMismatch(),
            ),
        },
    }


def _list_orders() -> Json:
    return {
        "operationId": "listOrders",
        "tags": ["orders"],
        "summary": "List orders, newest first",
        "description": "`next_cursor` costs the same on every page; `offset` costs what it skips. "
        "A page of very large orders ends early, at 1.5 MiB: `next_cursor` goes on behind it; with `offset`, "
        "go on by the number of orders received.",
        "parameters": [
            _query(
                "limit", "Orders on a page", {"type": "integer", "minimum": 1, "maximum": 100, "default": 50}
            ),
            _query(
                "offset",
                "Orders to skip; not together with `cursor`",
                {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "default": 0},
            ),
            _query("my_orders", "Only those that this user placed", {"type": "boolean", "default": False}),
            _query("cursor", "`next_cursor` of the page before, of the same list", {"type": "string"}),
        ],
        "responses": {
            "200": {
                **_json(
                    "A page",
                    "OrderPage",
                    {"orders": [PLACED], "limit": 50, "offset": 0, "next_cursor": None},
                ),
                "links": {"next": _link("listOrders", cursor="$response.body#/next_cursor")},
            },
            **_problems(
                *_FOR_EVERYBODY,
                *_FOR_CALLERS,
                MalformedRequest(errors=[("limit", "must be a whole number from 1 to 100")]),
            ),
        },
    }


def _get_order() -> Json:
    return {
        "operationId": "getOrder",
        "tags": ["orders"],
        "summary": "Read an order",
        "description": "Another tenant's, an absent and a malformed id are the same 404.",
        "parameters": [
            {
                "name": "order_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": PLACED["order_id"],
            },
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "ETags that are known already; a match answers 304",
                "schema": {"type": "string"},
            },
        ],
        "responses": {
            "200": _json("The order", "OneOrder", {"order": PLACED}, "ETag"),
            "304": {"description": "The known version is the newest", "headers": _headers("ETag")},
            **_problems(*_FOR_EVERYBODY, *_FOR_CALLERS, MalformedRequest(), NotFound()),
        },
    }


def _health() -> Json:
    return {
        "operationId": "health",
        "tags": ["operations"],
        "summary": "Whether the process runs; asks no database",
        "security": [],
        "responses": {"200": _json("It runs", "Health", {"status": "ok"}), **_problems(*_FOR_EVERYBODY)},
    }


def _ready() -> Json:
    return {
        "operationId": "ready",
        "tags": ["operations"],
        "summary": "Whether the database answers",
        "security": [],
        "responses": {
            "200": _json("It answers", "Health", {"status": "ready"}),
            **_problems(*_FOR_EVERYBODY, Unavailable()),
        },
    }


def _openapi() -> Json:
    return {
        "operationId": "openapi",
        "tags": ["operations"],
        "summary": "This document; where DOCS=on",
        "security": [],
        "responses": {
            "200": {
                "description": "OpenAPI 3.1",
                "headers": _headers(),
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            **_problems(*_FOR_EVERYBODY, NotFound()),
        },
    }


def _readable(get: Json) -> Json:
    """GET, and HEAD, which answers the same without a body."""
    bodiless = {
        status: {member: value for member, value in response.items() if member not in ("content", "links")}
        for status, response in get["responses"].items()
    }
    head = {**get, "operationId": f"{get['operationId']}Head", "summary": f"{get['summary']} (headers only)"}
    return {"get": get, "head": {**head, "responses": bodiless}}


def _limited(operations: Json) -> Json:
    """With the headers of RATE_LIMIT, from the token on."""
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if status not in ("401", "403"):
                response["headers"] = {**response["headers"], **_headers("RateLimit", "RateLimit-Policy")}
    return operations


def _traced(operations: Json) -> Json:
    """With the header that names a trace."""
    trace = {"$ref": "#/components/parameters/traceparent"}
    return {
        method: {**operation, "parameters": [*operation.get("parameters", ()), trace]}
        for method, operation in operations.items()
    }


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json(description: str, model: str, example: Json, *headers: str) -> Json:
    return {
        "description": description,
        "headers": _headers(*headers),
        "content": {"application/json": {"schema": _ref(model), "example": example}},
    }


def _problems(*problems: Problem) -> Json:
    """A response for each status, with an example of each problem that has it."""
    by_status = groupby(sorted(problems, key=lambda each: each.status), key=lambda each: each.status)
    return {str(status): _problem(*same) for status, same in by_status}


def _problem(*problems: Problem) -> Json:
    return {
        "description": " ".join(problem.__doc__ or problem.title for problem in problems),
        "headers": _headers(*problems[0].headers),
        "content": {
            "application/problem+json": {
                "schema": _ref("ProblemDetails"),
                "examples": {
                    problem.slug: {
                        "summary": problem.title,
                        "value": json.loads(problem.response(_REQUEST_ID).body),
                    }
                    for problem in problems
                },
            }
        },
    }


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _link(operation: str, **parameters: str) -> Json:
    return {"operationId": operation, "parameters": parameters}


def _ref(model: str) -> Json:
    return {"$ref": f"#/components/schemas/{model}"}


_DESCRIPTION = (
    "Orders of many shops on one database. The tenant comes from the verified token and from nowhere else. "
    "Amounts are exact decimals. Every error is an RFC 9457 problem. HEAD answers as GET, without a body. "
    "Answers may gain members later: ignore those that you do not know."
)
_REQUEST_ID = "9b2f1c9e-1f0a-4c58-9d51-3a8f4a3f7c11"
_FOR_EVERYBODY = (Internal(), RateLimited())
_FOR_CALLERS = (Unauthorized(), MissingTenant(), Unavailable())
_TRACEPARENT = {
    "name": "traceparent",
    "in": "header",
    "description": "W3C Trace Context: the trace goes on to the database and shows in the log. "
    "A malformed one is ignored.",
    "schema": {"type": "string"},
    "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
_HEADERS = {
    "ETag": {
        "description": "The order's version, quoted",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    },
    "Idempotent-Replayed": {
        "description": "An earlier answer is repeated: this key placed the order before",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Location": {
        "description": "The order, relative to the request's own URI",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "RateLimit": {
        "description": "With a limit: requests that are left (r), and seconds until there are more (t)",
        "schema": {"type": "string", "examples": ['"tenant";r=99;t=1']},
    },
    "RateLimit-Policy": {
        "description": "With a limit: requests of a tenant (q) in so many seconds (w)",
        "schema": {"type": "string", "examples": ['"tenant";q=100;w=1']},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "How to send the token",
        "required": True,
        "schema": {"type": "string", "enum": ["Bearer"]},
    },
    "X-Request-Id": {
        "description": "Names this request in logs and reports",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    },
}
