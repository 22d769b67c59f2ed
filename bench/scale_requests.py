"""The requests to the growing database and to the empty one: their callers and orders."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from bench import load, operations
from bench.load import HUGE, Placed
from chalicelib.caller import Caller
from chalicelib.orders.pages import cursor_after

Json = dict[str, Any]
Requests = Mapping[str, Sequence[Json]]
"""Events by the operation's key."""
Samples = Mapping[str, Sequence[Placed]]
"""Orders by the size of their shop."""

LIMIT = operations.LIMIT
DEEP_PAGE, FAR = 10_000, 100_000
"""The page that is compared with the first, and an OFFSET."""
EMPTY = 60
"""Orders in the empty database: enough for a full page and a next page."""
FEW = range(load.ORDERS_A_USER - 2, load.ORDERS_A_USER + 3)
"""Number of orders of a user with few."""
CALLS, SLOW_CALLS = 10, 1
"""Calls in each round; SLOW_CALLS of requests that skip many rows."""
BLOCKS = 60
"""Blocks of orders, spread over the table, from which the requested orders are drawn."""
MAX_SAMPLES = 1_200
"""Orders for each size of shop."""
SIZES = {"small": "small shops", "middle": "middle shops", "huge": "the huge shop"}


@dataclass(frozen=True)
class Operation:
    """A kind of request."""

    key: str
    title: str
    calls: int = CALLS
    status: int = 200
    waits: bool = True
    """Whether its commit waits for the disk."""
    is_drawn: bool = True

    @property
    def writes(self) -> bool:
        return self.status == 201


def _of_each_size(kind: str, title: str, status: int, waits: bool = True) -> list[Operation]:
    return [
        Operation(
            f"{kind}_{size}", title.format(shops), status=status, waits=waits, is_drawn=size != "middle"
        )
        for size, shops in SIZES.items()
    ]


GETS = _of_each_size("get", "get, {}", 200)
CREATES = _of_each_size("create", "create, {}", 201)
UNSYNCED = _of_each_size("unsynced", "create, {}, synchronous_commit off", 201, waits=False)
MINE = Operation("my_orders", f"my_orders of a user with about {load.ORDERS_A_USER}")
PAGE_1 = Operation("page_1", f"page 1 of the huge shop, {LIMIT} orders")
ANY_PAGE = Operation("any_page", "any page of the huge shop, by cursor", is_drawn=False)
DEEP_BY_CURSOR = Operation("deep_by_cursor", "page 10,000 of the huge shop, by cursor")
DEEP_BY_OFFSET = Operation("deep_by_offset", "page 10,000 of the huge shop, by offset", SLOW_CALLS)
AT_OFFSET = Operation("at_offset", f"OFFSET {FAR:,} in the huge shop", SLOW_CALLS, is_drawn=False)
OPERATIONS = (*GETS, MINE, PAGE_1, ANY_PAGE, DEEP_BY_CURSOR, DEEP_BY_OFFSET, AT_OFFSET, *CREATES, *UNSYNCED)
"""In the order of the tables. Where the huge shop has no page 10,000, its deepest one takes the place."""


def samples(orders: int) -> Samples:
    """Orders spread over the first `orders`, without a query, which would fill the database's cache."""
    chance = random.Random(orders)  # noqa: S311 (the same in every run)
    blocks = range(0, orders, load.BLOCK)
    drawn = [
        order for first in chance.sample(blocks, min(BLOCKS, len(blocks))) for order in load.block(first)
    ]
    chance.shuffle(drawn)
    shops = load.tenants_at(orders)
    of_size = {
        "small": [order for order in drawn if order.rank >= shops * 0.6],
        # About the middle rank on a logarithmic scale.
        "middle": [order for order in drawn if shops**0.4 <= order.rank <= shops**0.6],
        "huge": [order for order in drawn if order.rank == HUGE],
    }
    return {size: placed[:MAX_SAMPLES] for size, placed in of_size.items()}


def few_orders() -> list[Placed]:
    """EMPTY orders of the huge shop; the first ten belong to one user."""
    huge = [order for order in load.block(0) if order.rank == HUGE]
    one_user = [order for order in huge if order.user_number == 1][: load.ORDERS_A_USER]
    return [*one_user, *[order for order in huge if order.user_number != 1][: EMPTY - len(one_user)]]


def among_many(sampled: Samples, cursor: Any, of_the_huge: int) -> Requests:
    """Requests to the growing database. `cursor` is the database's; `of_the_huge`: the huge shop's orders."""
    huge = sampled["huge"]
    oldest = sorted(order.number for order in huge)[len(huge) // 5]
    requests: dict[str, Sequence[Json]] = {
        **_creates(sampled),
        **{
            operation.key: [_as(order, operations.get(order.order_id)) for order in placed]
            for operation, placed in zip(GETS, sampled.values(), strict=True)
        },
        MINE.key: [_list(order, my_orders="true") for order in _users_with_few(cursor, huge)],
        PAGE_1.key: [_list(huge[0])],
        # Without the oldest orders: no full page follows them.
        ANY_PAGE.key: [
            _list(order, cursor=_cursor(order, order.order_id)) for order in huge if order.number > oldest
        ],
    }
    skipped = (deep_page(of_the_huge) - 1) * LIMIT
    if skipped:
        cursor.execute(
            "select order_id from orders where tenant_id = %s order by order_id desc offset %s limit 1",
            [huge[0].tenant, skipped - 1],
        )
        ((last_of_the_page_before,),) = cursor.fetchall()
        requests[DEEP_BY_CURSOR.key] = [_list(huge[0], cursor=_cursor(huge[0], last_of_the_page_before))]
        requests[DEEP_BY_OFFSET.key] = [_list(huge[0], offset=str(skipped))]
    if of_the_huge >= FAR + LIMIT:
        requests[AT_OFFSET.key] = [_list(huge[0], offset=str(FAR))]
    return requests


def among_few(sampled: Samples, few: Sequence[Placed]) -> Requests:
    """Requests to the empty database; its creates are the same."""
    gets = [_as(order, operations.get(order.order_id)) for order in few]
    return {
        **_creates(sampled),
        **{operation.key: gets for operation in GETS},
        MINE.key: [_list(few[0], my_orders="true")],
        PAGE_1.key: [_list(few[0])],
    }


def deep_page(of_the_huge: int) -> int:
    """The deepest whole page of the huge shop, at most DEEP_PAGE."""
    return min(DEEP_PAGE, of_the_huge // LIMIT)


def shops_of(sampled: Samples) -> list[str]:
    return sorted({order.tenant for placed in sampled.values() for order in placed})


def _creates(sampled: Samples) -> dict[str, Sequence[Json]]:
    return {
        operation.key: [_as(order, operations.create()) for order in placed]
        for kind in (CREATES, UNSYNCED)
        for operation, placed in zip(kind, sampled.values(), strict=True)
    }


def _users_with_few(cursor: Any, placed: Sequence[Placed]) -> list[Placed]:
    """One order of each user of the shop who has about ten."""
    by_user = {order.user: order for order in placed}
    cursor.execute(
        "select created_by, count(*) from orders where tenant_id = %s and created_by = any(%s) group by 1",
        [placed[0].tenant, list(by_user)],
    )
    return [by_user[user] for user, orders in cursor.fetchall() if orders in FEW]


def _as(placed: Placed, event: Json) -> Json:
    """The event with the tenant and user of that order."""
    event["requestContext"]["authorizer"]["claims"] |= {"custom:tenant_id": placed.tenant, "sub": placed.user}
    return event


def _list(placed: Placed, **query: str) -> Json:
    event = operations.first_page()
    parameters = {"limit": str(LIMIT), **query}
    event["queryStringParameters"] = parameters
    event["multiValueQueryStringParameters"] = {name: [value] for name, value in parameters.items()}
    return _as(placed, event)


def _cursor(placed: Placed, order_id: str) -> str:
    return cursor_after(UUID(order_id), Caller(placed.tenant, placed.user), my_orders=False)
