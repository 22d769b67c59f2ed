"""The expected outcome of every request, for every requester and every way to name another tenant."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chalicelib.http.parallel_chalice import METHODS
from tests.support.cognito import UserPool, signed
from tests.support.cross_tenant_requests import RequestDraft, Way
from tests.support.refusals import STATUS
from tests.support.tenants import Json, Requester, Tenant, create_tenant, requesters
from tools.client import Answer, Client, Transport, seed

Row = tuple[Any, ...]
Rows = Callable[..., list[Row]]
NOTHING = Way("nothing", "", lambda draft, _: draft)
STATUSES = {**STATUS, "idempotency-mismatch": 422}
VARIABLE_HEADERS = ("x-request-id", "date", "server", "content-length", "connection", "keep-alive")
"""Headers that may differ between responses and hosts."""
OWN_ORDERS = ("nothing", "header", "token", "id", "mine")
"""The values of Way.by with which the victim still gets its own orders."""


@dataclass(frozen=True)
class Operation:
    """A method of a route, from the app and its OpenAPI document."""

    method: str
    template: str
    allowed: bool
    protected: bool
    parameters: frozenset[str] = frozenset()
    takes_a_body: bool = False
    success: int = 0


def operations(app: Any, document: Json) -> Iterator[Operation]:
    """Every method of every route; new routes are included automatically."""
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
                parameters=frozenset(
                    parameter_name(parameter, document) for parameter in described.get("parameters", [])
                ),
                takes_a_body="requestBody" in described,
                success=min(int(status) for status in described["responses"]),
            )


def parameter_name(parameter: Json, document: Json) -> str:
    """A parameter's name, also behind a $ref."""
    shared = parameter.get("$ref", "").rpartition("/")[2]
    described = document["components"]["parameters"][shared] if shared else parameter
    return str(described["name"])


def expected(operation: Operation, requester: Requester, way: Way, victim: Tenant) -> int | str:
    """The status or problem slug; checks run in the order path, method, token, tenant, fields."""
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
    parameters = operation.parameters
    refusal = {
        "query": "malformed-request",
        "body": "validation" if operation.takes_a_body else None,
        "no id": "not-found",
        "id": None if own else "not-found",
        "mine": None if "my_orders" in parameters else "malformed-request",
        "cursor": None if own and "cursor" in parameters else "malformed-request",
        "own cursor": None if is_victim and "cursor" in parameters else "malformed-request",
        "key": "idempotency-mismatch"
        if is_victim and way.name == "with another order" and "Idempotency-Key" in parameters
        else None,
    }.get(way.by)
    return refusal or operation.success


def request(
    operation: Operation, requester: Requester, way: Way, victim: Tenant, other: Tenant
) -> RequestDraft:
    own_id = victim.order_id if requester.tenant != other.tenant else other.order_id
    draft = RequestDraft(
        operation.method,
        operation.template,
        re.sub("{.*}", own_id, operation.template),
        requester.claims,
        body=seed() if operation.method in ("POST", "PUT", "PATCH") else None,
    )
    return way.change(draft, victim)


def may_read(operation: Operation, requester: Requester, way: Way, victim: Tenant) -> bool:
    """Whether the victim's orders may be in the answer."""
    is_victim = requester.user == victim.user
    own_only = way.by == "mine" or (way.by == "key" and operation.method == "POST")
    return not requester.refused and requester.tenant == victim.tenant and (is_victim or not own_only)


def masked(answer: Answer) -> tuple[int, dict[str, str], str]:
    """A response without what differs between requests and hosts."""
    headers = {name: value for name, value in answer.headers.items() if name not in VARIABLE_HEADERS}
    return (
        answer.status,
        {n: _without_variables(v) for n, v in headers.items()},
        _without_variables(answer.body.decode()),
    )


def _without_variables(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)
    text = re.sub(r'"request_id":\s*"[^"]*"', "<request>", text)
    text = re.sub(r'"next_cursor":"[^"]*"', "<cursor>", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<moment>", text)


def response_errors(
    operation: Operation,
    requester: Requester,
    way: Way,
    answer: Answer,
    plain: Answer | None,
    victim: Tenant,
) -> list[str]:
    """How an answer breaks the rule. `plain`: the answer to the same request without naming the victim."""
    expected_outcome = expected(operation, requester, way, victim)
    errors: list[str] = []
    status = expected_outcome if isinstance(expected_outcome, int) else STATUSES[expected_outcome]
    if answer.status != status:
        errors.append(f"{answer.status} instead of {expected_outcome}")
    elif isinstance(expected_outcome, str) and operation.method != "HEAD" and answer.slug != expected_outcome:
        errors.append(f"{answer.slug} instead of {expected_outcome}")
    text = answer.body.decode() + json.dumps(dict(answer.headers))
    if not may_read(operation, requester, way, victim):
        secrets = (
            victim.placed if requester.tenant == victim.tenant and not requester.refused else victim.secrets
        )
        if operation.method == "POST" and way.name == "with the same order":  # the request contains them
            secrets = [order["order_id"] for order in victim.orders]
        own_user = "" if requester.refused else requester.user
        errors += [f"says {secret}" for secret in secrets if secret in text and secret != own_user]
    elif (
        expected_outcome == 200 and operation.protected and operation.method == "GET" and way.by in OWN_ORDERS
    ):
        errors += [f"does not say {secret}" for secret in victim.placed[:4] if secret not in text]
    if plain is not None and masked(answer) != masked(plain):
        errors.append("another answer than without naming anybody")
    if way.by == "key" and isinstance(expected_outcome, int) and operation.takes_a_body:
        replayed = answer.headers.get("idempotent-replayed") == "true"
        if replayed != (requester.name == "the victim" and way.name == "with the same order"):
            errors.append("replayed" if replayed else "not replayed")
    return [f"{requester.name}, {operation.method} {operation.template}, {way}: {error}" for error in errors]


@dataclass(frozen=True)
class Scene:
    """The app under test, and access to its database."""

    app: Any
    document: Json
    pool: UserPool
    rows: Rows
    baseline: Transport
    """Creates the tenants, and sends requests that do not name the victim."""

    def cross_tenant_requests(
        self, way: Way, send: Transport, included: Callable[[Operation], bool] = lambda _: True
    ) -> list[str]:
        """Errors in the answers to all requesters that name a victim in this way, and in the stored rows."""
        victim, other = create_tenant(self.baseline, self.pool), create_tenant(self.baseline, self.pool)
        before, placed, errors = self._stored_rows(victim, other), 0, []
        for operation in filter(included, operations(self.app, self.document)):
            for requester in requesters(self.pool, victim, other) if way.fits(operation.template) else []:
                expected_outcome, plain = expected(operation, requester, way, victim), None
                if isinstance(expected_outcome, int) and way.by in ("header", "token", "body"):
                    plain = request(operation, requester, NOTHING, victim, other).send_through(self.baseline)
                answer = request(operation, requester, way, victim, other).send_through(send)
                errors += response_errors(operation, requester, way, answer, plain, victim)
                if requester.tenant == victim.tenant:
                    new = [response for response in (plain, answer) if response and response.status == 201]
                    placed += len(
                        [response for response in new if "idempotent-replayed" not in response.headers]
                    )
        return errors + [f"{way}: {error}" for error in self._row_errors(before, placed, victim, other)]

    def replays(self, send: Transport) -> list[str]:
        """Errors when every other requester with a tenant uses the victim's idempotency key twice."""
        victim, other = create_tenant(self.baseline, self.pool), create_tenant(self.baseline, self.pool)
        errors = []
        for requester in [
            candidate for candidate in requesters(self.pool, victim, other) if not candidate.refused
        ][1:]:
            client = Client(send, signed(requester.claims or {}))
            answers = [client.place(victim.body, key=victim.key) for _ in range(2)]
            if [answer.status for answer in answers] != [201, 201]:
                errors.append(f"{requester.name}: {[answer.status for answer in answers]}")
                continue
            first, second = (answer.json["order"] for answer in answers)
            if first != second or first["tenant_id"] != requester.tenant or first in victim.orders:
                errors.append(f"{requester.name}: {second} is not the own {first}")
        return errors

    def _row_errors(self, before: set[Row], placed: int, victim: Tenant, other: Tenant) -> list[str]:
        """Errors in both tenants' rows, after the victim's tenant has placed this many orders."""
        after = self._stored_rows(victim, other)
        new = [row for row in after - before if row[:2] == (victim.tenant, "orders")]
        strangers = {row[2] for row in new} - {victim.user, f"colleague-{victim.tenant}"}
        return [
            *(f"gone: {row}" for row in before - after),
            *(f"an order of the victim's tenant, made by {stranger}" for stranger in strangers),
            *([] if len(new) == placed else [f"{len(new)} new orders of a tenant that placed {placed}"]),
        ]

    def _stored_rows(self, *tenants: Tenant) -> set[Row]:
        """Every row of these tenants: tenant, table, creator if any, and the whole row as text."""
        makers = {"orders": "created_by", "idempotency_keys": "created_by", "order_items": "''"}
        selects = (
            f"select tenant_id, '{table}', {maker}, t::text from {table} t where tenant_id in (%s, %s)"
            for table, maker in makers.items()
        )
        return set(self.rows(" union all ".join(selects), *[owner.tenant for owner in tenants] * len(makers)))
