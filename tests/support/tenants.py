"""A tenant with unique order values, and all kinds of requesters for its orders."""

import time
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from tests.support.cognito import UserPool, signed
from tools.client import Client, Transport, item, seed

Json = dict[str, Any]


@dataclass(frozen=True)
class Tenant:
    """A tenant whose orders contain values that no other order has."""

    tenant: str
    user: str
    orders: tuple[Json, ...] = ()
    """Newest first; the oldest was placed with the idempotency key."""
    body: Json = field(default_factory=dict)
    """The request body of the oldest order."""
    key: str = ""
    cursor: str = ""
    own_cursor: str = ""
    """A cursor for my_orders=true."""

    @property
    def order_id(self) -> str:
        return str(self.orders[-1]["order_id"])

    @property
    def email(self) -> str:
        return f"victor@{self.tenant}.example"

    @property
    def placed(self) -> list[str]:
        """Values that no answer may contain for a requester who may not read these orders."""
        names = ("customer_name", "customer_phone", "shipping_address", "billing_address", "total_amount")
        texts = [str(self.body[name]) for name in names]
        return [*texts, self.body["items"][0]["product_sku"], *(order["order_id"] for order in self.orders)]

    @property
    def secrets(self) -> list[str]:
        """Values that no answer to another tenant may contain."""
        return [self.tenant, self.user, self.email, self.key, *self.placed]


def create_tenant(send: Transport, pool: UserPool) -> Tenant:
    """A tenant with three orders."""
    name = uuid4().hex
    owner = Tenant(f"owner-{name[:12]}", f"user-{name[12:24]}", key=f"key-{name[20:]}")
    victor = Client(send, signed(claims(pool, owner.tenant, owner.user)))
    body = seed(
        customer_name=f"Victor {name}",
        customer_email=owner.email,
        customer_phone=f"+{int(name[:9], 16)}",
        shipping_address=f"{name} Main St",
        billing_address=f"{name} Side St",
        total_amount=int(name[:7], 16) + 0.07,
        items=[item(product_sku=f"SKU-{name}")] * 2,
    )
    placed = [victor.place(body, key=owner.key), victor.place(body), victor.place(body)]
    pages = [victor.get(f"/orders?limit=1{mine}") for mine in ("", "&my_orders=true")]
    return replace(
        owner,
        orders=tuple(answer.json["order"] for answer in reversed(placed)),
        body=body,
        cursor=pages[0].json["next_cursor"],
        own_cursor=pages[1].json["next_cursor"],
    )


@dataclass(frozen=True)
class Requester:
    name: str
    tenant: str | None
    user: str
    claims: Json | None
    """The token's claims; None if there is no token."""
    refused: str | None = None
    """The problem slug that every protected operation answers."""


def claims(pool: UserPool, tenant: str | None, user: str, **changes: Any) -> Json:
    now = int(time.time())
    return {
        "sub": user,
        "iss": pool.issuer,
        "aud": pool.client_id,
        "token_use": "id",
        "email": f"{user}@example.com",
        "iat": now,
        "exp": now + 600,
        **({} if tenant is None else {"custom:tenant_id": tenant}),
        **changes,
    }


def requesters(pool: UserPool, victim: Tenant, other: Tenant) -> list[Requester]:
    """The victim first; the first two belong to the victim's tenant, the next two to another."""
    own, foreign = victim.tenant, other.tenant
    past = int(time.time()) - 3600
    elsewhere = pool.issuer.rpartition("_")[0] + "_AnotherPool"

    def requester(
        name: str, tenant: str | None, user: str, refused: str | None = None, **changes: Any
    ) -> Requester:
        return Requester(name, tenant, user, claims(pool, tenant, user, **changes), refused)

    return [
        requester("the victim", own, victim.user),
        requester("a colleague", own, f"colleague-{own}"),
        requester("a stranger", foreign, other.user),
        requester("a namesake", foreign, victim.user),
        requester("a user without a tenant", None, victim.user, "missing-tenant"),
        requester("a token of another pool", own, victim.user, "unauthorized", iss=elsewhere),
        requester("an expired token", own, victim.user, "unauthorized", iat=past - 600, exp=past),
        Requester("no token", None, "", None, "unauthorized"),
    ]
