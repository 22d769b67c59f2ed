"""Every way to name another tenant in a request."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import Any
from urllib.parse import quote, urlencode

from tests.support.cognito import signed
from tests.support.issuer import encoded
from tests.support.tenants import Json, Tenant
from tools.client import Answer, Transport, item, seed


@dataclass(frozen=True)
class RequestDraft:
    """A request that is not serialised yet."""

    method: str
    template: str
    path: str
    claims: Json | None
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    def send_through(self, send: Transport) -> Answer:
        authorization = (
            {} if self.claims is None else {"authorization": f"Bearer {_token(json.dumps(self.claims))}"}
        )
        body = b"" if self.body is None else json.dumps(self.body).encode()
        content_type = {"content-type": "application/json"} if body else {}
        target = self.path + (f"?{urlencode(self.query)}" if self.query else "")
        return send(self.method, target, {**authorization, **content_type, **self.headers}, body)


@lru_cache(maxsize=64)
def _token(claims: str) -> str:
    return signed(json.loads(claims))


@dataclass(frozen=True)
class Way:
    """One way to name the victim in a request."""

    by: str
    """The changed part of the request: `header`, `token`, `query`, `body`, `id`, `no id`, `path`, `cursor`,
    `own cursor`, `mine`, `key` or `nothing`."""
    name: str
    change: Callable[[RequestDraft, Tenant], RequestDraft]

    def __str__(self) -> str:
        return f"{self.by}: {self.name}"

    def fits(self, template: str) -> bool:
        return "{" in template or self.by not in ("id", "no id")


def _claims_of(victim: Tenant) -> Json:
    return {"sub": victim.user, "custom:tenant_id": victim.tenant, "token_use": "id", "email": victim.email}


def _unsigned(victim: Tenant) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(_claims_of(victim))}."


def _gateway_event(victim: Tenant) -> Json:
    """The event that API Gateway sends to Lambda for a request by the victim."""
    authorizer = {"claims": _claims_of(victim), "jwt": {"claims": _claims_of(victim)}, **_claims_of(victim)}
    context = {"resourcePath": "/orders", "httpMethod": "GET", "authorizer": authorizer}
    return {
        "requestContext": context,
        "httpMethod": "GET",
        "headers": {"authorization": f"Bearer {_unsigned(victim)}"},
        "pathParameters": {"order_id": victim.order_id},
        "multiValueQueryStringParameters": None,
    }


def _principal(victim: Tenant) -> str:
    """App Service's principal header: base64 of JSON."""
    claim_list = [{"typ": name, "val": value} for name, value in _claims_of(victim).items()]
    claim_list.append({"typ": "tid", "val": victim.tenant})
    return b64encode(json.dumps({"auth_typ": "aad", "claims": claim_list}).encode()).decode()


HEADERS: dict[str, Callable[[Tenant], str]] = {
    **dict.fromkeys(
        (
            "x-tenant-id",
            "x-tenant",
            "tenant",
            "tenant-id",
            "x-custom-tenant-id",
            "custom-tenant_id",
            "tid",
            "x-org-id",
            "x-hasura-tenant-id",
            "x-ms-client-principal-idp",
            "x-scope-orgid",
            "fn-http-h-tenant",
            "x-claims-tenant-id",
            "x-auth-tenant",
            "x-amzn-tenant-id",
            "x-jwt-claim-tenant_id",
        ),
        lambda victim: victim.tenant,
    ),
    **dict.fromkeys(
        (
            "x-user-id",
            "x-forwarded-user",
            "x-remote-user",
            "x-amzn-oidc-identity",
            "oci-subject-id",
            "x-ms-client-principal-id",
            "x-goog-authenticated-user-id",
        ),
        lambda victim: victim.user,
    ),
    **dict.fromkeys(
        ("x-forwarded-email", "x-goog-authenticated-user-email", "x-ms-client-principal-name", "from"),
        lambda victim: victim.email,
    ),
    **dict.fromkeys(
        (
            "x-amzn-oidc-data",
            "x-amzn-oidc-accesstoken",
            "x-ms-token-aad-id-token",
            "x-authorization",
            "x-goog-iap-jwt-assertion",
            "x-forwarded-access-token",
            "proxy-authorization",
            "x-id-token",
        ),
        _unsigned,
    ),
    **dict.fromkeys(
        ("x-apigateway-api-userinfo", "x-endpoint-api-userinfo", "x-userinfo"),
        lambda victim: encoded(_claims_of(victim)),
    ),
    **dict.fromkeys(
        ("x-apigateway-event", "x-apigateway-context", "x-amzn-request-context", "x-fn-event"),
        lambda victim: quote(json.dumps(_gateway_event(victim))),
    ),
    "x-ms-client-principal": _principal,
    "forwarded": lambda victim: f'for={victim.user};host="{victim.tenant}.example";proto=https',
    "x-forwarded-host": lambda victim: f"{victim.tenant}.example",
    "x-forwarded-prefix": lambda victim: f"/{victim.tenant}",
    "x-original-url": lambda victim: f"/orders/{victim.order_id}",
    "x-rewrite-url": lambda victim: f"/orders/{victim.order_id}",
    "x-http-method-override": lambda _: "GET",
    "cookie": lambda victim: f"tenant_id={victim.tenant}; session={_unsigned(victim)}",
    "referer": lambda victim: f"https://{victim.tenant}.example/orders/{victim.order_id}",
    "baggage": lambda victim: f"tenant_id={victim.tenant},user_id={victim.user}",
}
QUERIES: dict[str, Callable[[Tenant], str]] = {
    **dict.fromkeys(
        (
            "tenant_id",
            "tenant",
            "tenantId",
            "custom:tenant_id",
            "claims[tenant_id]",
            "tid",
            "my_orders",
            "limit",
        ),
        lambda victim: victim.tenant,
    ),
    "created_by": lambda victim: victim.user,
    "user_id": lambda victim: victim.user,
    "order_id": lambda victim: victim.order_id,
    "access_token": _unsigned,
    "requestContext": lambda victim: json.dumps(_gateway_event(victim)),
}
CLAIMS: dict[str, Callable[[Tenant], Any]] = {
    **dict.fromkeys(
        (
            "tid",
            "tenant_id",
            "tenant",
            "org_id",
            "custom:tenant",
            "Custom:Tenant_Id",
            "CUSTOM:TENANT_ID",
            "custom:tenant_id ",
            "tenantId",
            "custom.tenant_id",
            "cognito:tenant_id",
            "https://api/tenant_id",
        ),
        lambda victim: victim.tenant,
    ),
    "firebase": lambda victim: {"tenant": victim.tenant},
    "custom": lambda victim: {"tenant_id": victim.tenant},
    "cognito:groups": lambda victim: [victim.tenant],
    "custom:tenant_ids": lambda victim: [victim.tenant],
    "act": lambda victim: {"sub": victim.user, "custom:tenant_id": victim.tenant},
    "claims": _claims_of,
    "oid": lambda victim: victim.user,
    "username": lambda victim: victim.user,
    "email": lambda victim: victim.email,
}
MEMBERS: dict[str, Callable[[Tenant], Any]] = {
    **dict.fromkeys(("tenant_id", "tenantId", "tenant", "custom:tenant_id"), lambda victim: victim.tenant),
    "created_by": lambda victim: victim.user,
    "order_id": lambda victim: victim.order_id,
    "claims": _claims_of,
    "requestContext": lambda victim: _gateway_event(victim)["requestContext"],
    "__proto__": lambda victim: {"tenant_id": victim.tenant},
}
AT_ONCE = "all of them at once"
UNKNOWN_PATHS: dict[str, Callable[[str, Tenant], str]] = {
    "the tenant in front": lambda path, victim: f"/{victim.tenant}{path}",
    "the tenant under tenants": lambda path, victim: f"/tenants/{victim.tenant}{path}",
    "the tenant behind": lambda path, victim: f"{path}/{victim.tenant}/{victim.order_id}",
    "the tenant's host": lambda path, victim: f"//{victim.tenant}.example{path}",
}
MALFORMED_IDS: dict[str, Callable[[Tenant], str]] = {
    "a matrix parameter": lambda victim: f"{victim.order_id};tenant_id={victim.tenant}",
    "hyphens in percent": lambda victim: victim.order_id.replace("-", "%2D"),
    "without hyphens": lambda victim: victim.order_id.replace("-", ""),
    "in braces": lambda victim: "%7B" + victim.order_id + "%7D",
    "a NUL behind it": lambda victim: victim.order_id + "%00",
    "SQL behind it": lambda victim: victim.order_id + "'%20or%20tenant_id='" + victim.tenant,
    "two of them": lambda victim: f"{victim.order_id},{victim.order_id}",
    "the tenant": lambda victim: victim.tenant,
    "a wildcard": lambda _: "%25",
}


def _with_header(name: str) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: replace(draft, headers={**draft.headers, name: HEADERS[name](victim)})


def _with_query(name: str) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: replace(draft, query=[(name, QUERIES[name](victim))])


def _with_claim(name: str) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    def change(draft: RequestDraft, victim: Tenant) -> RequestDraft:
        claims = None if draft.claims is None else {**draft.claims, name: CLAIMS[name](victim)}
        return replace(draft, claims=claims)

    return change


def _with_member(name: str) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: replace(draft, body={**(draft.body or seed()), name: MEMBERS[name](victim)})


def _with_path(name: str) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: replace(draft, path=UNKNOWN_PATHS[name](draft.path, victim))


def _with_id(format_id: Callable[[Tenant], str]) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: replace(draft, path=re.sub("{.*}", format_id(victim), draft.template))


def _with_all(
    change: Callable[[str], Callable[[RequestDraft, Tenant], RequestDraft]], names: Iterable[str]
) -> Callable[[RequestDraft, Tenant], RequestDraft]:
    return lambda draft, victim: reduce(lambda changed, name: change(name)(changed, victim), names, draft)


WAYS = [
    Way("nothing", "", lambda draft, _: draft),
    *(Way("header", name, _with_header(name)) for name in HEADERS),
    Way("header", AT_ONCE, _with_all(_with_header, HEADERS)),
    *(Way("token", name, _with_claim(name)) for name in CLAIMS),
    Way("token", AT_ONCE, _with_all(_with_claim, CLAIMS)),
    *(Way("query", name, _with_query(name)) for name in QUERIES),
    *(Way("body", name, _with_member(name)) for name in MEMBERS),
    Way("body", AT_ONCE, _with_all(_with_member, MEMBERS)),
    Way("body", "an event", lambda draft, victim: replace(draft, body=_gateway_event(victim))),
    Way(
        "body",
        "tenant_id of an item",
        lambda draft, victim: replace(draft, body=seed(items=[item(tenant_id=victim.tenant)])),
    ),
    *(Way("path", name, _with_path(name)) for name in UNKNOWN_PATHS),
    Way("id", "as it is", _with_id(lambda victim: victim.order_id)),
    Way("id", "in capitals", _with_id(lambda victim: victim.order_id.upper())),
    Way(
        "id",
        "on a condition",
        lambda draft, victim: replace(
            _with_id(lambda victim: victim.order_id)(draft, victim), headers={"if-none-match": '"another"'}
        ),
    ),
    *(Way("no id", name, _with_id(format_id)) for name, format_id in MALFORMED_IDS.items()),
    Way("cursor", "", lambda draft, victim: replace(draft, query=[("cursor", victim.cursor)])),
    Way(
        "own cursor",
        "",
        lambda draft, victim: replace(draft, query=[("cursor", victim.own_cursor), ("my_orders", "true")]),
    ),
    Way("mine", "", lambda draft, _: replace(draft, query=[("my_orders", "true")])),
    Way(
        "key",
        "with the same order",
        lambda draft, victim: replace(draft, body=victim.body, headers={"idempotency-key": victim.key}),
    ),
    Way(
        "key",
        "with another order",
        lambda draft, victim: replace(
            draft, body=seed(customer_name="Somebody"), headers={"idempotency-key": victim.key}
        ),
    ),
]
_SENT_AT_ONCE: dict[str, Container[str]] = {"header": HEADERS, "token": CLAIMS, "body": MEMBERS}
WAYS_AT_ONCE = [way for way in WAYS if way.name not in _SENT_AT_ONCE.get(way.by, ())]
"""WAYS with all headers, claims or members in one request, for the doors, where a request costs more."""
