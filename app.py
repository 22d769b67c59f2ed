"""The order API: its routes. The modules that they call are in chalicelib/."""

from chalice.app import CognitoUserPoolAuthorizer, CORSConfig, Response

from chalicelib import snapstart
from chalicelib.composition import connections
from chalicelib.http.admission import admitted
from chalicelib.http.current_request import caller, deadline, header, json_body
from chalicelib.http.middleware import Middleware
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.http.query import query, refuse_query
from chalicelib.observability import logs
from chalicelib.orders import idempotency_key
from chalicelib.orders.new_order import NewOrder
from chalicelib.orders.pages import Page
from chalicelib.orders.repository import OrderRepository
from chalicelib.orders.responses import created, current_version
from chalicelib.settings.http import cors_origin, docs_are_on
from chalicelib.settings.identity_provider import user_pools

logs.start()
cors = CORSConfig(
    allow_origin=cors_origin(),
    allow_headers=["Idempotency-Key", "If-None-Match", "traceparent", "tracestate"],
    expose_headers=[
        "ETag",
        "Idempotent-Replayed",
        "Location",
        "RateLimit",
        "RateLimit-Policy",
        "Retry-After",
        "X-Request-Id",
    ],
    max_age=3600,
)
app = ParallelChalice("order-api", cors)
app.register_middleware(Middleware(app), "http")
customers = CognitoUserPoolAuthorizer("customers", provider_arns=user_pools())


@app.route("/orders", methods=["POST"], authorizer=customers)
def place_order() -> Response:
    orders = admitted(OrderRepository)
    body = json_body()
    refuse_query()
    key = idempotency_key.from_header(header("Idempotency-Key"))
    order = orders.add(NewOrder.from_json(body), key)
    return created(order)


@app.route("/orders/{order_id}", methods=["GET", "HEAD"], authorizer=customers)
def get_order(order_id: str) -> Response:
    orders = admitted(OrderRepository)
    refuse_query()
    order = orders.get(order_id)
    return current_version(order)


@app.route("/orders", methods=["GET", "HEAD"], authorizer=customers)
def list_orders() -> Response:
    orders = admitted(OrderRepository)
    page = Page.from_query(query(), caller())
    return Response(orders.page(page))


@app.route("/health", methods=["GET", "HEAD"])
def health() -> Response:
    return Response('{"status":"ok"}')


@app.route("/health/ready", methods=["GET", "HEAD"])
def ready() -> Response:
    connections().check_schema(deadline())
    return Response('{"status":"ready"}')


@app.route("/openapi.json", methods=["GET", "HEAD"], exists=docs_are_on)
def get_openapi() -> Response:
    # Not imported at a cold start: few requests need it.
    from chalicelib.openapi import document
    from chalicelib.openapi import health as health_operations
    from chalicelib.orders import operations as order_operations

    return Response(document.render(*order_operations.OPERATIONS, *health_operations.OPERATIONS))


snapstart.register(app)
