"""A tenant whose orders can be told from all others, and everybody who might ask for them."""

import time
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from tests.support.client import Client, Transport, item, seed
from tests.support.cognito import UserPool, signed

Json = dict[str, Any]


@dataclass(frozen=True)
class Shop:
    """A tenant whose user has placed orders that can be told from all others."""

    tenant: str
    user: str
    orders: tuple[Json, ...] = ()
    """Newest first; the oldest was placed with the key."""
    body: Json = field(default_factory=dict)
    """What the oldest was placed with."""
    key: str = ""
    cursor: str = ""
    own_cursor: str = ""
    """The cursor of the user's own orders."""

    @property
    def order_id(self) -> str:
        return str(self.orders[-1]["order_id"])

    @property
    def email(self) -> str:
        return f"victor@{self.tenant}.example"

    @property
    def placed(self) -> list[str]:
        """What nobody may be told who may not read these orders."""
        words = ("customer_name", "customer_phone", "shipping_address", "billing_address", "total_amount")
        texts = [str(self.body[name]) for name in words]
        return [*texts, self.body["items"][0]["product_sku"], *(order["order_id"] for order in self.orders)]

    @property
    def secrets(self) -> list[str]:
        """What nobody of another tenant may be told."""
        return [self.tenant, self.user, self.email, self.key, *self.placed]


def opened(send: Transport, pool: UserPool) -> Shop:
    """A shop with three orders in it."""
    name = uuid4().hex
    shop = Shop(f"shop-{name[:12]}", f"user-{name[12:24]}", key=f"key-{name[20:]}")
    victor = Client(send, signed(claims(pool, shop.tenant, shop.user)))
    body = seed(
        customer_name=f"Victor {name}",
        customer_email=shop.email,
        customer_phone=f"+{int(name[:9], 16)}",
        shipping_address=f"{name} Main St",
        billing_address=f"{name} Side St",
        total_amount=int(name[:7], 16) + 0.07,
        items=[item(product_sku=f"SKU-{name}")] * 2,
    )
    placed = [victor.place(body, key=shop.key), victor.place(body), victor.place(body)]
    pages = [victor.get(f"/orders?limit=1{mine}") for mine in ("", "&my_orders=true")]
    return replace(
        shop,
        orders=tuple(answer.json["order"] for answer in reversed(placed)),
        body=body,
        cursor=pages[0].json["next_cursor"],
        own_cursor=pages[1].json["next_cursor"],
    )


@dataclass(frozen=True)
class Asker:
    name: str
    tenant: str | None
    user: str
    claims: Json | None
    """What the token says; None: there is no token."""
    refused: str | None = None
    """The slug that every protected operation answers, whatever is asked."""


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


def askers(pool: UserPool, victim: Shop, other: Shop) -> list[Asker]:
    """The victim first; the first two are of the victim's tenant, the next two of another."""
    own, foreign = victim.tenant, other.tenant
    past = int(time.time()) - 3600
    elsewhere = pool.issuer.rpartition("_")[0] + "_AnotherPool"

    def asker(name: str, tenant: str | None, user: str, refused: str | None = None, **changes: Any) -> Asker:
        return Asker(name, tenant, user, claims(pool, tenant, user, **changes), refused)

    return [
        asker("the victim", own, victim.user),
        asker("a colleague", own, f"colleague-{own}"),
        asker("a stranger", foreign, other.user),
        asker("a namesake", foreign, victim.user),
        asker("nobody's user", None, victim.user, "missing-tenant"),
        asker("another pool", own, victim.user, "unauthorized", iss=elsewhere),
        asker("yesterday's victim", own, victim.user, "unauthorized", iat=past - 600, exp=past),
        Asker("nobody", None, "", None, "unauthorized"),
    ]
