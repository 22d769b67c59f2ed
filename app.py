"""The routes of the order API. What they call is in chalicelib/."""

import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from uuid import uuid4

from chalice.app import CognitoUserPoolAuthorizer, CORSConfig, Request, Response

from chalicelib import rate_limit as rates
from chalicelib.caller import Caller, Invocation, Verified
from chalicelib.database import tenant_scope as database
from chalicelib.errors import (
    Internal,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Problem,
    Unauthorized,
    UnsupportedMediaType,
)
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.observability import logs
from chalicelib.observability import record as telemetry
from chalicelib.orders import idempotency_key as idempotency
from chalicelib.orders.new_order import NewOrder
from chalicelib.orders.pages import Page, single_values
from chalicelib.orders.repository import OrderRepository
from chalicelib.settings import identity_provider
from chalicelib.settings.aws_lambda import is_snapshotted, on_lambda
from chalicelib.settings.http import cors_origin, docs_are_on
from chalicelib.settings.identity_provider import is_accepted_client, user_pools

LARGEST_BODY = 1024 * 1024
RATE_HEADERS = "rate_headers"
"""Under which name a request's context has them; API Gateway's own names are in camel case."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
claim_names = cache(identity_provider.claim_names)
"""Read once, at the first request."""

logs.start()
app = ParallelChalice(app_name="order-api", configure_logs=False)
app.api.binary_types = []
app.api.cors = cors = CORSConfig(
    allow_origin=cors_origin(),
    allow_headers=["Idempotency-Key", "If-None-Match", "traceparent", "tracestate"],
    expose_headers=[
        *("ETag", "Idempotent-Replayed", "Location"),
        *("RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
    ],
    max_age=3600,
)
COMMON_HEADERS = {
    "Content-Type": "application/json",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    **cors.get_access_control_headers(),
}
customers = CognitoUserPoolAuthorizer("customers", provider_arns=user_pools())


# content_types=[] on every route: the media type is checked after the token, in json_body().


@app.route("/orders", methods=["POST"], authorizer=customers, content_types=[])
def place_order() -> Response:
    orders = OrderRepository(admitted_caller(), ends_at())
    body = json_body()
    refuse_query()
    key = idempotency.key(request().headers.get("idempotency-key"))
    order = orders.add(NewOrder.from_json(body), key)
    return Response(
        f'{{"message":"Order created successfully","order":{order.json}}}',
        {
            "Location": f"orders/{order.order_id}",
            "ETag": f'"{order.version}"',
            **({"Idempotent-Replayed": "true"} if order.replayed else {}),
        },
        status_code=201,
    )


@app.route("/orders/{order_id}", methods=["GET", "HEAD"], authorizer=customers, content_types=[])
def get_order(order_id: str) -> Response:
    orders = OrderRepository(admitted_caller(), ends_at())
    refuse_query()
    order = orders.get(order_id)
    etag = f'"{order.version}"'
    if is_fresh(etag):
        return Response("", {"ETag": etag}, status_code=304)
    return Response(f'{{"order":{order.json}}}', {"ETag": etag})


@app.route("/orders", methods=["GET", "HEAD"], authorizer=customers, content_types=[])
def list_orders() -> Response:
    caller = admitted_caller()
    page = Page.from_query(query(), caller)
    return Response(OrderRepository(caller, ends_at()).page(page))


@app.route("/health", methods=["GET", "HEAD"], content_types=[])
def health() -> Response:
    return Response('{"status":"ok"}')


@app.route("/health/ready", methods=["GET", "HEAD"], content_types=[])
def ready() -> Response:
    database.ping(ends_at())
    return Response('{"status":"ready"}')


@app.route("/openapi.json", methods=["GET", "HEAD"], content_types=[])
def get_openapi() -> Response:
    if not docs_are_on():
        raise NotFound
    from chalicelib.openapi import document
    from chalicelib.openapi import health as health_operations
    from chalicelib.orders import operations as order_operations

    return Response(document.render(*order_operations.OPERATIONS, *health_operations.OPERATIONS))


def refuse_method(**_path: str) -> Response:
    """Every other method of a known path; declared, because API Gateway forwards no other."""
    path = request().path
    if path == "/openapi.json" and not docs_are_on():
        raise NotFound
    raise MethodNotAllowed(allowed_methods(path))


for known_path, declared in list(app.routes.items()):
    others = [method for method in METHODS if method not in declared]
    app.route(known_path, methods=others, content_types=[])(refuse_method)


@app.middleware("http")
def answer(event: Request | None, get_response: Callable[[Any], Response]) -> Response:
    """Give every answer the contract's headers, every error its shape, every request its line in the log."""
    request_id = (event and event.context.get("requestId")) or str(uuid4())
    record = telemetry.begin(request_id, "aws" if on_lambda() else "local")
    if event is not None:
        record.describe(event.method, event.path, traceparent(event))
    response = answered(event, get_response, record)
    limit = event.context.get(RATE_HEADERS, {}) if event else {}
    response.headers = {**COMMON_HEADERS, **limit, **response.headers, "X-Request-Id": request_id}
    if event is not None and event.method == "HEAD":
        response.body = ""
    telemetry.end(record, response.status_code)
    return response


def answered(
    event: Request | None, get_response: Callable[[Any], Response], record: telemetry.Record
) -> Response:
    try:
        if event is None or event.path not in app.routes or has_trailing_slash(event):
            raise NotFound
        response = get_response(event)
        if response.status_code == 405:  # outside METHODS: Chalice's own answer
            raise MethodNotAllowed(allowed_methods(event.path))
        if response.status_code >= 500:  # a route raised what is no Problem: Chalice has logged it
            raise Internal
    except Problem as problem:
        return record.refuse(problem)
    except Exception:
        app.log.exception("unforeseen error")
        return record.refuse(Internal())
    return response


def traceparent(event: Request) -> str | None:
    """The header; None of several, which are no trace (API Gateway shows the last, and keeps them all)."""
    found: str | None = event.headers.get("traceparent")
    if found:
        sent = event.to_original_event().get("multiValueHeaders") or {}
        if sum(len(values) for name, values in sent.items() if name.lower() == "traceparent") > 1:
            return None
    return found


def has_trailing_slash(event: Request) -> bool:
    """API Gateway finds the route of `/orders` for `/orders/` too; what was sent is in the event's path."""
    return str(event.to_original_event().get("path", "")).endswith("/")


def allowed_methods(path: str) -> list[str]:
    routes = app.routes[path]
    return [method for method in METHODS if routes[method].view_function is not refuse_method]


def request() -> Request:
    current = app.current_request
    assert current is not None  # noqa: S101 (Chalice sets it before any route runs)
    return current


def admitted_caller() -> Caller:
    """Who asks, when the tenant has a turn left. Raises as verified_caller does, and RateLimited."""
    caller = verified_caller()
    if not request().context.get("rehearsal"):  # no API Gateway says so: snapstart.py, of nobody's tenant
        request().context[RATE_HEADERS] = rates.take_turn(caller, ends_at())
    return caller


def ends_at() -> float | None:
    """When the host will end this request, by time.monotonic(); None where it does not say."""
    context = app.lambda_context
    if isinstance(context, Invocation):
        return context.ends_at
    if context is None or not on_lambda():
        return None
    return time.monotonic() + float(context.get_remaining_time_in_millis()) / 1000


def verified_caller() -> Caller:
    """Who asks. Raises Unauthorized without a good token, MissingTenant when it names no tenant."""
    caller = Caller.from_claims(verified_claims(), claim_names())
    telemetry.asked_by(caller)
    return caller


def verified_claims() -> Mapping[str, Any]:
    """Claims that a shim's gateway or, on Lambda, API Gateway verified; else those of the token itself."""
    if isinstance(app.lambda_context, Verified):
        return app.lambda_context.claims
    if on_lambda():
        claims = (request().context.get("authorizer") or {}).get("claims")
        if not claims or not is_accepted_client(claims.get("aud")):
            raise Unauthorized
        return claims  # type: ignore[no-any-return]
    from chalicelib.identity import tokens

    return tokens.claims(request().headers.get("authorization"))


def query() -> Mapping[str, list[str]]:
    parameters = request().to_original_event()["multiValueQueryStringParameters"]
    return parameters or {}


def refuse_query() -> None:
    single_values(query(), allowed=())


def json_body() -> bytes:
    """The body's bytes. Raises MalformedRequest on bad base64, PayloadTooLarge or UnsupportedMediaType."""
    event = request().to_original_event()
    body: bytes | str = event["body"] or b""
    try:
        if event.get("isBase64Encoded"):
            body = b64decode(body, validate=True)
        elif isinstance(body, str):
            body = body.encode()
    except ValueError:
        raise MalformedRequest("The body is not valid base64 or not valid Unicode.") from None
    if len(body) > LARGEST_BODY:
        raise PayloadTooLarge
    media_type = (request().headers.get("content-type") or "application/json").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType
    return body


def is_fresh(etag: str) -> bool:
    """Whether If-None-Match names this version (RFC 9110, section 13.1.2: weak comparison)."""
    known = [tag.strip().removeprefix("W/") for tag in request().headers.get("if-none-match", "").split(",")]
    return etag in known or "*" in known


if is_snapshotted():
    from chalicelib import snapstart

    snapstart.register(app)
