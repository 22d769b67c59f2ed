"""The OpenAPI 3.1 document, made from the models that read the requests."""

import json
from functools import cache
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from chalicelib import settings
from chalicelib.messages import NewOrder

Json = dict[str, Any]

SEED = {
    "customer_name": "John Doe",
    "customer_email": "john@example.com",
    "customer_phone": "+1234567890",
    "shipping_address": "123 Main St",
    "billing_address": "123 Main St",
    "total_amount": 99.99,
    "currency": "USD",
    "items": [{"product_name": "Widget", "product_sku": "WDG-001", "quantity": 2, "unit_price": 49.99}],
}


class PlacedItem(BaseModel):
    """One line of a placed order."""

    line_no: int = Field(ge=1, le=500, description="1..n, in the order in which the lines were sent")
    product_name: str
    product_sku: str
    quantity: int
    unit_price: float = Field(description="Exactly the currency's decimals")


class PlacedOrder(BaseModel):
    """An order as every answer carries it."""

    order_id: str = Field(json_schema_extra={"format": "uuid"}, description="UUID version 7")
    tenant_id: str
    created_by: str = Field(description="The `sub` of the token that placed it")
    status: str = Field(json_schema_extra={"enum": ["pending"]})
    version: int = Field(description="The ETag, without its quotes")
    customer_name: str
    customer_email: str
    customer_phone: str | None
    shipping_address: str | None
    billing_address: str | None
    total_amount: float = Field(description="Exactly the currency's decimals: 99.99, 100.00, JPY 100")
    currency: str
    items: list[PlacedItem]
    created_at: str = Field(
        json_schema_extra={"format": "date-time"}, examples=["2026-11-22T09:00:00.123000Z"]
    )
    updated_at: str = Field(json_schema_extra={"format": "date-time"})


class OrderCreated(BaseModel):
    message: str
    order: PlacedOrder


class OneOrder(BaseModel):
    order: PlacedOrder


class OrderPage(BaseModel):
    orders: list[PlacedOrder] = Field(description="Newest first")
    limit: int
    offset: int | None = Field(description="null when a cursor led here")
    next_cursor: str | None = Field(description="null on the last page")


class FieldError(BaseModel):
    field: str = Field(examples=["items[0].quantity"])
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:order-api:problem:validation"])
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError]


class Health(BaseModel):
    status: str


@cache
def document() -> str:
    """The document as JSON text."""
    models = (NewOrder, OrderCreated, OneOrder, OrderPage, ProblemDetails, Health)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = definitions["$defs"]
    schemas["NewOrder"]["properties"]["currency"]["default"] = settings.default_currency()
    schemas["NewOrder"]["examples"] = [SEED]
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Order API",
                "version": "1.0.0",
                "description": _DESCRIPTION,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "."}],
            "tags": [
                {"name": "orders", "description": "Placing and reading orders"},
                {"name": "operations", "description": "For load balancers, operators and tools"},
            ],
            "security": [{"token": []}],
            "paths": {
                "/orders": {"post": _place_order(), **_readable(_list_orders())},
                "/orders/{order_id}": _readable(_get_order()),
                "/health": _readable(_health()),
                "/health/ready": _readable(_ready()),
                "/openapi.json": _readable(_openapi()),
            },
            "components": {
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
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
        "description": "With an `Idempotency-Key` the same order can be sent again and is placed once.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "1 to 255 visible ASCII characters, bare or as a quoted string. "
                "Kept for at least 24 hours, per tenant and user.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~][!-~]*$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("NewOrder"), "example": SEED}},
        },
        "responses": {
            "201": _json(
                "The order. `Idempotent-Replayed: true` when this key placed it before.",
                "OrderCreated",
                "Location",
                "ETag",
                "Idempotent-Replayed",
            ),
            "409": _problem("A request with the same Idempotency-Key is still running", "Retry-After"),
            "413": _problem("The body is larger than 1 MiB"),
            "415": _problem("The body is not declared as application/json"),
            "422": _problem("A field is wrong, or the Idempotency-Key belongs to another order"),
            **_problems(400, 401, 403, 500, 503),
        },
    }


def _list_orders() -> Json:
    return {
        "operationId": "listOrders",
        "tags": ["orders"],
        "summary": "List orders, newest first",
        "description": "`next_cursor` costs the same on every page; `offset` costs what it skips.",
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
            _query("cursor", "`next_cursor` of the page before", {"type": "string"}),
        ],
        "responses": {"200": _json("A page", "OrderPage"), **_problems(400, 401, 403, 500, 503)},
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
                "example": "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f",
            },
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "An ETag that is known already",
                "schema": {"type": "string", "pattern": "^[ -~]*$"},
            },
        ],
        "responses": {
            "200": _json("The order", "OneOrder", "ETag"),
            "304": {"description": "The known version is the newest", "headers": _headers("ETag")},
            **_problems(400, 401, 403, 404, 500, 503),
        },
    }


def _health() -> Json:
    return {
        "operationId": "health",
        "tags": ["operations"],
        "summary": "Whether the process runs; asks no database",
        "security": [],
        "responses": {"200": _json("It runs", "Health"), **_problems(500)},
    }


def _ready() -> Json:
    return {
        "operationId": "ready",
        "tags": ["operations"],
        "summary": "Whether the database answers",
        "security": [],
        "responses": {"200": _json("It answers", "Health"), **_problems(500, 503)},
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
            **_problems(404, 500),
        },
    }


def _readable(get: Json) -> Json:
    """GET, and HEAD, which answers the same without a body."""
    bodiless = {
        status: {member: value for member, value in response.items() if member != "content"}
        for status, response in get["responses"].items()
    }
    head = {**get, "operationId": f"{get['operationId']}Head", "summary": f"{get['summary']} (headers only)"}
    return {"get": get, "head": {**head, "responses": bodiless}}


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json(description: str, model: str, *headers: str) -> Json:
    return {
        "description": description,
        "headers": _headers(*headers),
        "content": {"application/json": {"schema": _ref(model)}},
    }


def _problem(description: str, *headers: str) -> Json:
    return {
        "description": description,
        "headers": _headers(*headers),
        "content": {"application/problem+json": {"schema": _ref("ProblemDetails")}},
    }


def _problems(*statuses: int) -> Json:
    return {str(status): _problem(*_PROBLEMS[status]) for status in statuses}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _ref(model: str) -> Json:
    return {"$ref": f"#/components/schemas/{model}"}


_DESCRIPTION = (
    "Orders of many shops on one database. The tenant comes from the verified token and from nowhere else. "
    "Amounts are exact decimals. Every error is an RFC 9457 problem."
)
_PROBLEMS: dict[int, tuple[str, ...]] = {
    400: ("The body, a query parameter or a header could not be read",),
    401: ("No token, or one that failed verification", "WWW-Authenticate"),
    403: ("The token names no tenant",),
    404: ("Nothing here, or nothing of this tenant",),
    500: ("Something went wrong on our side",),
    503: ("The database cannot answer at the moment", "Retry-After"),
}
_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "ETag": "The order's version, quoted",
        "Idempotent-Replayed": "true when an earlier answer is repeated",
        "Location": "The order, relative to the request's own URI",
        "Retry-After": "Seconds to wait before the next try",
        "WWW-Authenticate": "Bearer",
        "X-Request-Id": "Names this request in logs and reports",
    }.items()
}
