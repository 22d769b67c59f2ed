"""The one rule of what must come of a request, whoever asks and whomever it names."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chalicelib.http.parallel_chalice import METHODS
from tests.support.cognito import UserPool, signed
from tests.support.cross_tenant_requests import Asked, Way
from tests.support.refusals import STATUS
from tests.support.tenants import Json, Requester, Tenant, create_tenant, requesters
from tools.client import Answer, Client, Transport, seed

Row = tuple[Any, ...]
Rows = Callable[..., list[Row]]
NOTHING = Way("nothing", "", lambda asked, _: asked)
STATUSES = {**STATUS, "idempotency-mismatch": 422}
UNLIKE = ("x-request-id", "date", "server", "content-length", "connection", "keep-alive")
"""Headers in which answers and hosts may differ."""
OWN_ORDERS = ("nothing", "header", "token", "id", "mine")
"""By what a request is changed that the victim gets the victim's orders for."""


@dataclass(frozen=True)
class Operation:
    """A method of a route, as the app and its OpenAPI document have it."""

    method: str
    template: str
    allowed: bool
    protected: bool
    parameters: frozenset[str] = frozenset()
    takes_a_body: bool = False
    success: int = 0


def operations(app: Any, document: Json) -> Iterator[Operation]:
    """Every method of every route: a new one is among them by itself."""
    for template, declared in app.routes.items():
        for method in METHODS:
            if method not in app.allowed_methods(template):
                yield Operation(method, template, allowed=False, protected=False)
                continue
            described = document["paths"][template][method.lower()]
            yield Operation(
                method,
                template,
                allowed=True,
                protected=declared[method].authorizer is not None,
                parameters=frozenset(named(each, document) for each in described.get("parameters", [])),
                takes_a_body="requestBody" in described,
                success=min(int(status) for status in described["responses"]),
            )


def named(parameter: Json, document: Json) -> str:
    """Its name, also where it is described once for several operations."""
    shared = parameter.get("$ref", "").rpartition("/")[2]
    found = document["components"]["parameters"][shared] if shared else parameter
    return str(found["name"])


def expected(operation: Operation, requester: Requester, way: Way, victim: Tenant) -> int | str:
    """The status, or a problem's slug, by the contract's order: path, method, token, tenant, fields."""
    own = requester.tenant == victim.tenant
    is_victim = own and requester.user == victim.user
    if way.by == "path":
        return "not-found"
    if not operation.allowed:
        return "method-not-allowed"
    if not operation.protected:
        return operation.success
    if requester.refused:
        return requester.refused
    takes = operation.parameters
    refusal = {
        "query": "malformed-request",
        "body": "validation" if operation.takes_a_body else None,
        "no id": "not-found",
        "id": None if own else "not-found",
        "mine": None if "my_orders" in takes else "malformed-request",
        "cursor": None if own and "cursor" in takes else "malformed-request",
        "own cursor": None if is_victim and "cursor" in takes else "malformed-request",
        "key": "idempotency-mismatch"
        if is_victim and way.name == "with another order" and "Idempotency-Key" in takes
        else None,
    }.get(way.by)
    return refusal or operation.success


def request(operation: Operation, requester: Requester, way: Way, victim: Tenant, other: Tenant) -> Asked:
    own_id = victim.order_id if requester.tenant != other.tenant else other.order_id
    asked = Asked(
        operation.method,
        operation.template,
        re.sub("{.*}", own_id, operation.template),
        requester.claims,
        body=seed() if operation.method in ("POST", "PUT", "PATCH") else None,
    )
    return way.change(asked, victim)


def may_read(operation: Operation, requester: Requester, way: Way, victim: Tenant) -> bool:
    """Whether the victim's orders may be in the answer."""
    is_victim = requester.user == victim.user
    own_only = way.by == "mine" or (way.by == "key" and operation.method == "POST")
    return not requester.refused and requester.tenant == victim.tenant and (is_victim or not own_only)


def masked(answer: Answer) -> tuple[int, dict[str, str], str]:
    """An answer without what differs from request to request and from host to host."""
    headers = {name: value for name, value in answer.headers.items() if name not in UNLIKE}
    return answer.status, {n: _unmarked(v) for n, v in headers.items()}, _unmarked(answer.body.decode())


def _unmarked(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)
    text = re.sub(r'"request_id":\s*"[^"]*"', "<request>", text)
    text = re.sub(r'"next_cursor":"[^"]*"', "<cursor>", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<moment>", text)


def wrong(
    operation: Operation,
    requester: Requester,
    way: Way,
    answer: Answer,
    plain: Answer | None,
    victim: Tenant,
) -> list[str]:
    """What is wrong with an answer. `plain`: what the same requester got who named nobody."""
    due = expected(operation, requester, way, victim)
    found: list[str] = []
    status = due if isinstance(due, int) else STATUSES[due]
    if answer.status != status:
        found.append(f"{answer.status} instead of {due}")
    elif isinstance(due, str) and operation.method != "HEAD" and answer.slug != due:
        found.append(f"{answer.slug} instead of {due}")
    said = answer.body.decode() + json.dumps(dict(answer.headers))
    if not may_read(operation, requester, way, victim):
        kept = (
            victim.placed if requester.tenant == victim.tenant and not requester.refused else victim.secrets
        )
        if operation.method == "POST" and way.name == "with the same order":  # it sends them itself
            kept = [order["order_id"] for order in victim.orders]
        own = "" if requester.refused else requester.user
        found += [f"says {secret}" for secret in kept if secret in said and secret != own]
    elif due == 200 and operation.protected and operation.method == "GET" and way.by in OWN_ORDERS:
        found += [f"does not say {secret}" for secret in victim.placed[:4] if secret not in said]
    if plain is not None and masked(answer) != masked(plain):
        found.append("another answer than without naming anybody")
    if way.by == "key" and isinstance(due, int) and operation.takes_a_body:
        replayed = answer.headers.get("idempotent-replayed") == "true"
        if replayed != (requester.name == "the victim" and way.name == "with the same order"):
            found.append("replayed" if replayed else "not replayed")
    return [f"{requester.name}, {operation.method} {operation.template}, {way}: {each}" for each in found]


@dataclass(frozen=True)
class Scene:
    """Where it is asked, and what is looked at."""

    app: Any
    document: Json
    pool: UserPool
    rows: Rows
    plainly: Transport
    """Opens the tenants, and takes what names nobody."""

    def cross_tenant_requests(
        self, way: Way, send: Transport, included: Callable[[Operation], bool] = lambda _: True
    ) -> list[str]:
        """What is wrong with the answers to everybody who names a victim in this way, and with what rests."""
        victim, other = create_tenant(self.plainly, self.pool), create_tenant(self.plainly, self.pool)
        before, placed, found = self._resting(victim, other), 0, []
        for operation in filter(included, operations(self.app, self.document)):
            for requester in requesters(self.pool, victim, other) if way.fits(operation.template) else []:
                due, plain = expected(operation, requester, way, victim), None
                if isinstance(due, int) and way.by in ("header", "token", "body"):
                    plain = request(operation, requester, NOTHING, victim, other).sent(self.plainly)
                answer = request(operation, requester, way, victim, other).sent(send)
                found += wrong(operation, requester, way, answer, plain, victim)
                if requester.tenant == victim.tenant:
                    new = [each for each in (plain, answer) if each and each.status == 201]
                    placed += len([each for each in new if "idempotent-replayed" not in each.headers])
        return found + [f"{way}: {each}" for each in self._disturbed(before, placed, victim, other)]

    def replays(self, send: Transport) -> list[str]:
        """What is wrong where everybody else with a tenant uses the victim's key twice."""
        victim, other = create_tenant(self.plainly, self.pool), create_tenant(self.plainly, self.pool)
        found = []
        for requester in [each for each in requesters(self.pool, victim, other) if not each.refused][1:]:
            client = Client(send, signed(requester.claims or {}))
            answers = [client.place(victim.body, key=victim.key) for _ in range(2)]
            if [answer.status for answer in answers] != [201, 201]:
                found.append(f"{requester.name}: {[answer.status for answer in answers]}")
                continue
            first, second = (answer.json["order"] for answer in answers)
            if first != second or first["tenant_id"] != requester.tenant or first in victim.orders:
                found.append(f"{requester.name}: {second} is not the own {first}")
        return found

    def _disturbed(self, before: set[Row], placed: int, victim: Tenant, other: Tenant) -> list[str]:
        """What is wrong with both tenants' rows, after the victim's tenant has placed this many orders."""
        after = self._resting(victim, other)
        new = [row for row in after - before if row[:2] == (victim.tenant, "orders")]
        strangers = {row[2] for row in new} - {victim.user, f"colleague-{victim.tenant}"}
        return [
            *(f"gone: {row}" for row in before - after),
            *(f"an order of the victim's tenant, made by {stranger}" for stranger in strangers),
            *([] if len(new) == placed else [f"{len(new)} new orders of a tenant that placed {placed}"]),
        ]

    def _resting(self, *tenants: Tenant) -> set[Row]:
        """Every row of these tenants: whose, of which table, by whom where it says so, and all of it."""
        makers = {"orders": "created_by", "idempotency_keys": "created_by", "order_items": "''"}
        of_each = (
            f"select tenant_id, '{table}', {maker}, t::text from {table} t where tenant_id in (%s, %s)"
            for table, maker in makers.items()
        )
        return set(self.rows(" union all ".join(of_each), *[owner.tenant for owner in tenants] * len(makers)))
