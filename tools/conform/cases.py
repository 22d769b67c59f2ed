"""The requests that every host must answer identically, each with the expected status."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.client import SEED_BYTES, item, seed

JSON = {"Content-Type": "application/json"}
MIB = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """One request. `{run}` and values of earlier answers, such as `{first.order_id}`, are substituted."""

    name: str
    method: str
    target: str
    status: int
    slug: str = ""
    """The problem's slug, if the answer is a problem."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    caller: str = "alice"
    """Whose token is sent: `alice`, `stranger` of another tenant, `tenantless`; empty sends none."""
    keep: str = ""
    """The name under which later cases can use this answer's order_id and next_cursor."""


def get(name: str, target: str, status: int, slug: str = "", **more: Any) -> Case:
    return Case(name, "GET", target, status, slug, **more)


def post(name: str, body: Any, status: int, slug: str = "", **more: Any) -> Case:
    """POST /orders; `body` is bytes, or a value to write as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    headers = {**JSON, **more.pop("headers", {})}
    return Case(name, "POST", more.pop("target", "/orders"), status, slug, body=raw, headers=headers, **more)


def with_token(name: str, authorization: str) -> Case:
    """A request with an invalid Authorization header."""
    return get(name, "/orders", 401, "unauthorized", caller="", headers={"Authorization": authorization})


KEY = {"Idempotency-Key": "conformance-{run}"}
FORGED_CLAIMS = json.dumps({"custom:tenant_id": "victim", "sub": "mallory", "tid": "victim"})

CASES = [
    # Orders
    get("an empty list", "/orders", 200),
    post("the seed order", SEED_BYTES, 201, keep="first"),
    post("a first request with a key", SEED_BYTES, 201, headers=KEY, keep="keyed"),
    post("the same again", SEED_BYTES, 201, headers=KEY),
    post("the same key in quotes", SEED_BYTES, 201, headers={"Idempotency-Key": '"conformance-{run}"'}),
    post("another order with that key", seed(customer_name="Jane"), 422, "idempotency-mismatch", headers=KEY),
    post("UTF-8 in names", seed(customer_name="Zoë Müller 李", shipping_address="Straße 1, 東京"), 201),
    post("emoji in names", seed(items=[item(product_name="Widget 🎁👩‍👩‍👧", product_sku="🎁")]), 201),
    post("escapes instead of UTF-8", json.dumps(seed(customer_name="Zoë 🎁")).encode(), 201),
    post("no decimals in yen", seed(currency="JPY", total_amount=100, items=[item(unit_price=50)]), 201),
    post(
        "three decimals in dinar",
        seed(currency="KWD", total_amount="1.250", items=[item(unit_price=0.5)]),
        201,
    ),
    post("a decimal string", seed(total_amount="99.99"), 201),
    post("the largest amount", seed(total_amount=999999999999.99), 201),
    post("500 items", seed(items=[item(product_sku=f"S-{n}") for n in range(500)]), 201, keep="large"),
    post(
        "a charset beside the media type",
        SEED_BYTES,
        201,
        headers={"Content-Type": "application/json; charset=utf-8"},
    ),
    post("a media type in capitals", SEED_BYTES, 201, headers={"Content-Type": "Application/JSON"}),
    Case(
        "headers in mixed case",
        "POST",
        "/orders",
        201,
        body=SEED_BYTES,
        headers={"cOnTeNt-TyPe": "application/json"},
    ),
    # One order
    get("an order by its id", "/orders/{first.order_id}", 200),
    Case("its head", "HEAD", "/orders/{first.order_id}", 200),
    get("an order that has not changed", "/orders/{first.order_id}", 304, headers={"If-None-Match": '"1"'}),
    get("a weak tag among others", "/orders/{first.order_id}", 304, headers={"If-None-Match": '"0", W/"1"'}),
    get("any version", "/orders/{first.order_id}", 304, headers={"If-None-Match": "*"}),
    Case(
        "the head of an order that has not changed",
        "HEAD",
        "/orders/{first.order_id}",
        304,
        headers={"iF-nOnE-mAtCh": '"1"'},
    ),
    get("another version", "/orders/{first.order_id}", 200, headers={"If-None-Match": '"2"'}),
    get("an order of 500 items", "/orders/{large.order_id}", 200),
    get("another tenant's order", "/orders/{first.order_id}", 404, "not-found", caller="stranger"),
    get("an absent order", "/orders/01936f3c-3b5e-7cc0-98c4-dc0c0c07398f", 404, "not-found"),
    get("an id that is none", "/orders/not-a-uuid", 404, "not-found"),
    get("an id in capitals", "/orders/01936F3C-3B5E-7CC0-98C4-DC0C0C07398F", 404, "not-found"),
    get("an id of UTF-8", "/orders/%F0%9F%8E%81", 404, "not-found"),
    get("an id of bytes that are no UTF-8", "/orders/%FF%FE", 404, "not-found"),
    get("an id with NUL", "/orders/%00", 404, "not-found"),
    get("an id with a line break", "/orders/a%0D%0AX-Injected:%20yes", 404, "not-found"),
    get("an id with an encoded slash", "/orders/a%2Fb", 404, "not-found"),
    get("an id with an encoded question mark", "/orders/a%3Flimit=1", 404, "not-found"),
    get("an encoded dash in a good id", "/orders/01936f3c%2D3b5e-7cc0-98c4-dc0c0c07398f", 404, "not-found"),
    get("a percent sign that encodes nothing", "/orders/%zz", 404, "not-found"),
    get("a plus in an id", "/orders/a+b", 404, "not-found"),
    get("a long id", "/orders/" + "x" * 1000, 404, "not-found"),
    get("a query on one order", "/orders/{first.order_id}?limit=1", 400, "malformed-request"),
    # Lists
    get("one order of the list", "/orders?limit=1", 200, keep="page"),
    get("the page behind it", "/orders?limit=1&cursor={page.next_cursor}", 200),
    get("an offset", "/orders?limit=1&offset=1", 200),
    get("my orders", "/orders?my_orders=true&limit=1", 200),
    get("not only my orders", "/orders?my_orders=false&limit=1", 200),
    Case("the head of a list", "HEAD", "/orders?limit=1", 200),
    get("a stranger's list", "/orders", 200, caller="stranger"),
    get("an empty query", "/orders?", 200, caller="stranger"),
    get("a percent-encoded name and value", "/orders?%6Cimit=%31", 200),
    get("limit 0", "/orders?limit=0", 400, "malformed-request"),
    get("limit 101", "/orders?limit=101", 400, "malformed-request"),
    get("an empty value", "/orders?limit=", 400, "malformed-request"),
    get("a name without a value", "/orders?limit", 400, "malformed-request"),
    get("a repeated name", "/orders?limit=1&limit=1", 400, "malformed-request"),
    get("a repeated name with an empty value", "/orders?limit=1&limit=", 400, "malformed-request"),
    get("two unknown names", "/orders?page=2&sort=asc", 400, "malformed-request"),
    get("a name in capitals", "/orders?LIMIT=1", 400, "malformed-request"),
    get("a negative offset", "/orders?offset=-1", 400, "malformed-request"),
    get("a plus for a space", "/orders?limit=+1", 400, "malformed-request"),
    get("UTF-8 in a value", "/orders?my_orders=%E6%9D%8E", 400, "malformed-request"),
    get("bytes that are no UTF-8 in a value", "/orders?cursor=%FF", 400, "malformed-request"),
    get("a line break in a name", "/orders?a%0D%0Ab=1", 400, "malformed-request"),
    get("a cursor that is none", "/orders?cursor=garbage", 400, "malformed-request"),
    get("a cursor with an offset", "/orders?cursor={page.next_cursor}&offset=1", 400, "malformed-request"),
    get(
        "another tenant's cursor",
        "/orders?cursor={page.next_cursor}",
        400,
        "malformed-request",
        caller="stranger",
    ),
    # Bodies that are no order
    post("no body", b"", 400, "malformed-request"),
    post("no JSON", b"{", 400, "malformed-request"),
    post("bytes that are no UTF-8", b'{"customer_name": "\xff"}', 400, "malformed-request"),
    post("base64 of an order", b"eyJjdXN0b21lcl9uYW1lIjogIkpvaG4gRG9lIn0=", 400, "malformed-request"),
    post("a repeated member", b'{"currency": "USD", "currency": "EUR"}', 400, "malformed-request"),
    post("NaN", SEED_BYTES.replace(b"99.99", b"NaN", 1), 400, "malformed-request"),
    post("nesting beyond 32", b"[" * 100 + b"]" * 100, 400, "malformed-request"),
    post("a list", [], 422, "validation"),
    post("an empty object", {}, 422, "validation"),
    post("server-owned fields", seed(tenant_id="victim", order_id="1", status="paid"), 422, "validation"),
    post(
        "an amount with too many decimals",
        SEED_BYTES.replace(b"99.99", b"0.10000000000000000001", 1),
        422,
        "validation",
    ),
    post("a control character", seed(customer_name="John\x00Doe"), 422, "validation"),
    post("a lone surrogate", SEED_BYTES.replace(b"John Doe", rb"\ud800", 1), 422, "validation"),
    post("items that are none", seed(items=[item(quantity=0), item(unit_price=-1)]), 422, "validation"),
    post("a body over 1 MiB", b" " * (MIB + 1), 413, "payload-too-large"),
    post("a body of 1 MiB", SEED_BYTES.ljust(MIB), 201),
    post("text", SEED_BYTES, 415, "unsupported-media-type", headers={"Content-Type": "text/plain"}),
    post(
        "a form",
        b"a=b",
        415,
        "unsupported-media-type",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    post("a key of blanks", SEED_BYTES, 400, "malformed-request", headers={"Idempotency-Key": "a b"}),
    post(
        "a key of 256 characters",
        SEED_BYTES,
        400,
        "malformed-request",
        headers={"Idempotency-Key": "k" * 256},
    ),
    post("a query on POST", SEED_BYTES, 400, "malformed-request", target="/orders?tenant_id=victim"),
    # Tokens
    get("no token", "/orders", 401, "unauthorized", caller=""),
    post("no token with a body", SEED_BYTES, 401, "unauthorized", caller=""),
    post("no token with garbage for a body", b"{", 401, "unauthorized", caller=""),
    post("no token with too large a body", b" " * (MIB + 1), 401, "unauthorized", caller=""),
    Case("the head of nothing without a token", "HEAD", "/orders", 401, caller=""),
    with_token("an empty token", "Bearer "),
    with_token("a word for a token", "Bearer garbage"),
    with_token("dots for a token", "Bearer .."),
    with_token("alg none", "Bearer eyJhbGciOiJub25lIn0.eyJjdXN0b206dGVuYW50X2lkIjoidmljdGltIn0."),
    with_token("basic credentials", "Basic YWxpY2U6c2VjcmV0"),
    get("a token without a tenant", "/orders", 403, "missing-tenant", caller="tenantless"),
    post("a token without a tenant, with garbage", b"{", 403, "missing-tenant", caller="tenantless"),
    # Client headers that imitate a host's
    get(
        "claims in headers",
        "/orders",
        401,
        "unauthorized",
        caller="",
        headers={
            "X-MS-CLIENT-PRINCIPAL": "eyJhdXRoX3R5cCI6ImFhZCJ9",
            "X-MS-CLIENT-PRINCIPAL-ID": "victim",
            "X-MS-TOKEN-AAD-ID-TOKEN": "a.b.c",
            "X-Apigateway-Api-Userinfo": "eyJzdWIiOiJ2aWN0aW0ifQ",
            "X-Apigateway-Event": FORGED_CLAIMS,
            "X-Amzn-Request-Context": FORGED_CLAIMS,
            "X-Goog-Authenticated-User-Email": "accounts.google.com:victim@example.com",
            "X-Forwarded-Authorization": "Bearer a.b.c",
            "Fn-Http-H-Authorization": "Bearer a.b.c",
        },
    ),
    get(
        "claims in headers beside a good token",
        "/orders",
        200,
        caller="stranger",
        headers={
            "X-MS-CLIENT-PRINCIPAL": "eyJhdXRoX3R5cCI6ImFhZCJ9",
            "X-Apigateway-Api-Userinfo": "eyJzdWIiOiJ2aWN0aW0ifQ",
            "X-Tenant-Id": "victim",
            "Claims": FORGED_CLAIMS,
        },
    ),
    get(
        "another path and method in headers",
        "/health",
        200,
        caller="",
        headers={
            "Fn-Http-Method": "POST",
            "Fn-Http-Request-Url": "/orders",
            "Fn-Http-H-Fn-Http-Method": "DELETE",
            "Fn-Http-Status": "500",
            "Fn-Intent": "cloudevent",
            "Fn-Call-Id": "00000000-client",
            "X-Original-URL": "/orders",
            "X-HTTP-Method-Override": "DELETE",
            "X-Request-Id": "client",
            "Function-Execution-Id": "client",
        },
    ),
    # Paths and methods
    get("health", "/health", 200, caller=""),
    get("health with a bad token", "/health", 200, caller="", headers={"Authorization": "Bearer garbage"}),
    Case("the head of health", "HEAD", "/health", 200, caller=""),
    get("readiness", "/health/ready", 200, caller=""),
    get("the OpenAPI document", "/openapi.json", 200, caller=""),
    get("the root", "/", 404, "not-found", caller=""),
    get("an unknown path", "/nowhere", 404, "not-found", caller=""),
    get("a path below an order", "/orders/{first.order_id}/items", 404, "not-found"),
    get("a trailing slash", "/orders/", 404, "not-found"),
    get("a trailing slash behind an id", "/orders/{first.order_id}/", 404, "not-found"),
    get("a doubled slash", "//orders", 404, "not-found"),
    get("a doubled slash inside", "/health//ready", 404, "not-found", caller=""),
    get("a dot segment", "/health/../orders", 404, "not-found", caller=""),
    get("a path in capitals", "/Orders", 404, "not-found"),
    get("a percent-encoded path", "/%6Frders", 404, "not-found"),
    get("a template for a path", "/orders/{{order_id}}", 404, "not-found"),
    Case("a POST to nowhere", "POST", "/nowhere", 404, "not-found", body=b"{", headers=JSON, caller=""),
    Case("the head of nowhere", "HEAD", "/nowhere", 404, caller=""),
    Case("PUT on the list", "PUT", "/orders", 405, "method-not-allowed", body=SEED_BYTES, headers=JSON),
    Case(
        "PATCH on an order",
        "PATCH",
        "/orders/{first.order_id}",
        405,
        "method-not-allowed",
        body=b"{}",
        headers=JSON,
    ),
    Case("DELETE on an order without a token", "DELETE", "/orders/x", 405, "method-not-allowed", caller=""),
    Case("POST on an order", "POST", "/orders/x", 405, "method-not-allowed", body=b"\xff", headers=JSON),
    Case("POST on health", "POST", "/health", 405, "method-not-allowed", caller=""),
    # Preflight
    Case(
        "the preflight of the list",
        "OPTIONS",
        "/orders",
        200,
        caller="",
        headers={
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        },
    ),
    Case("the preflight of an order", "OPTIONS", "/orders/{first.order_id}", 200, caller=""),
    Case("the preflight of health", "OPTIONS", "/health", 200, caller=""),
    Case("the preflight of nowhere", "OPTIONS", "/nowhere", 404, "not-found", caller=""),
    get(
        "an error for a browser",
        "/orders",
        401,
        "unauthorized",
        caller="",
        headers={"Origin": "https://shop.example"},
    ),
]
