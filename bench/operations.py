"""The requests to every contender, as API Gateway's events for a function, and the expected statuses."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from local.issuer import CLIENT_ID, ISSUER

Json = dict[str, Any]

BODY = (Path(__file__).parent.parent / "test_order.json").read_text()
"""The README's order."""
LIMIT = 50
READER, WRITER = "shop", "tenant-1"
"""The tenant whose orders are read, which never change, and the one where orders are placed."""
USER = "3f0f8a52-8d0c-5d0e-9d5e-0a8f2c1b7e64"
STATUS = {"create": 201, "get": 200, "list": 200, "cursor": 200, "replay": 201}
OPERATIONS = tuple(STATUS)
TITLES = {
    "create": "create",
    "get": "get",
    "list": f"list of {LIMIT}",
    "cursor": f"list of {LIMIT} by cursor",
    "replay": "idempotent replay",
}


def create(key: str | None = None) -> Json:
    headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
    return _event("POST", "/orders", WRITER, headers=headers, body=BODY)


def get(order_id: str) -> Json:
    path = {"order_id": order_id}
    return _event("GET", "/orders/{order_id}", READER, path=path)


def first_page() -> Json:
    return _event("GET", "/orders", READER, query=f"limit={LIMIT}")


def page_after(cursor: str) -> Json:
    return _event("GET", "/orders", READER, query=f"limit={LIMIT}&cursor={cursor}")


def masked(operation: str, body: str) -> Json:
    """The answer without values that every contender generates: cursors, and a new order's id and times."""
    answer: Json = json.loads(body)
    if "next_cursor" in answer:
        answer["next_cursor"] = answer["next_cursor"] is not None
    if operation in ("create", "replay"):
        answer["order"] = {**answer["order"], "order_id": "", "created_at": "", "updated_at": ""}
    return answer


def _event(
    method: str,
    resource: str,
    tenant: str,
    path: dict[str, str] | None = None,
    query: str = "",
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> Json:
    """API Gateway's event of a REST API with a Cognito authorizer, which passes every claim as text."""
    sent = {
        "Accept": "*/*",
        "Authorization": "Bearer verified.by.gateway",
        "Host": "api.example.com",
        "User-Agent": "bench",
        "X-Amzn-Trace-Id": "Root=1-00000000-000000000000000000000000",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
        **(headers or {}),
    }
    target = resource.format(**path) if path else resource
    parameters = dict(parse_qsl(query))
    return {
        "resource": resource,
        "path": target,
        "httpMethod": method,
        "headers": sent,
        "multiValueHeaders": {name: [value] for name, value in sent.items()},
        "queryStringParameters": parameters or None,
        "multiValueQueryStringParameters": {name: [value] for name, value in parameters.items()} or None,
        "pathParameters": path,
        "stageVariables": None,
        "requestContext": {
            "resourceId": "abc123",
            "resourcePath": resource,
            "httpMethod": method,
            "extendedRequestId": "c6Af9ac6",
            "requestTime": "22/Nov/2026:09:00:00 +0000",
            "requestTimeEpoch": 1795338000000,
            "path": f"/v1{target}",
            "accountId": "000000000000",
            "protocol": "HTTP/1.1",
            "stage": "v1",
            "domainPrefix": "api",
            "domainName": "api.example.com",
            "apiId": "abc123",
            "requestId": str(uuid4()),
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "bench"},
            "authorizer": {"claims": _claims(tenant)},
        },
        "body": body,
        "isBase64Encoded": False,
    }


def _claims(tenant: str) -> dict[str, str]:
    return {
        "sub": USER,
        "cognito:username": "alice",
        "custom:tenant_id": tenant,
        "email": f"alice@{tenant}.example",
        "iss": ISSUER,
        "aud": CLIENT_ID,
        "token_use": "id",
        "auth_time": str(int(time.time())),
        "iat": time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime()),
        "exp": time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(time.time() + 3600)),
        "jti": str(uuid4()),
    }
