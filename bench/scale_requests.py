"""What is asked of a growing database and of an empty one: by whom, for which orders."""

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
Asked = Mapping[str, Sequence[Json]]
"""Events by the operation's key."""
Samples = Mapping[str, Sequence[Placed]]
"""Orders by the size of their shop."""

LIMIT = operations.LIMIT
DEEP_PAGE, FAR = 10_000, 100_000
"""The page that is compared with the first, and an OFFSET."""
EMPTY = 60
"""Orders in the database that stays empty: a page there is a whole one, with a next page behind it."""
FEW = range(load.ORDERS_A_USER - 2, load.ORDERS_A_USER + 3)
"""Orders of a user who has few."""
CALLS, SLOW_CALLS = 10, 1
"""In each round; and of requests that skip rows one by one."""
BLOCKS = 60
"""Of orders all over the table, from which those that are asked for are drawn."""
MOST_SAMPLES = 1_200
"""Of each size of shop."""
SIZES = {"small": "small shops", "middle": "middle shops", "huge": "the huge shop"}


@dataclass(frozen=True)
class Operation:
    """A kind of request, of which many are sent."""

    key: str
    title: str
    calls: int = CALLS
    status: int = 200
    waits: bool = True
    """For the disk at a commit."""
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
    """Orders from all over the first so many, without asking the database: nothing gets into its cache."""
    chance = random.Random(orders)  # noqa: S311 (the same in every run)
    blocks = range(0, orders, load.BLOCK)
    found = [each for first in chance.sample(blocks, min(BLOCKS, len(blocks))) for each in load.block(first)]
    chance.shuffle(found)
    shops = load.tenants_at(orders)
    of_size = {
        "small": [each for each in found if each.rank >= shops * 0.6],
        # About the middle rank on a logarithmic scale.
        "middle": [each for each in found if shops**0.4 <= each.rank <= shops**0.6],
        "huge": [each for each in found if each.rank == HUGE],
    }
    return {size: placed[:MOST_SAMPLES] for size, placed in of_size.items()}


def few_orders() -> list[Placed]:
    """EMPTY orders of the huge shop, of which the first ten are one user's."""
    huge = [each for each in load.block(0) if each.rank == HUGE]
    theirs = [each for each in huge if each.user_number == 1][: load.ORDERS_A_USER]
    return [*theirs, *[each for each in huge if each.user_number != 1][: EMPTY - len(theirs)]]


def among_many(sampled: Samples, cursor: Any, of_the_huge: int) -> Asked:
    """What is asked among many orders; `cursor` is the database's, the huge shop has so many orders there."""
    huge = sampled["huge"]
    oldest = sorted(each.number for each in huge)[len(huge) // 5]
    asked: dict[str, Sequence[Json]] = {
        **_creates(sampled),
        **{
            operation.key: [_as(each, operations.get(each.order_id)) for each in placed]
            for operation, placed in zip(GETS, sampled.values(), strict=True)
        },
        MINE.key: [_list(each, my_orders="true") for each in _users_with_few(cursor, huge)],
        PAGE_1.key: [_list(huge[0])],
        # Not of the oldest ones: there is no whole page behind them.
        ANY_PAGE.key: [
            _list(each, cursor=_cursor(each, each.order_id)) for each in huge if each.number > oldest
        ],
    }
    skipped = (deep_page(of_the_huge) - 1) * LIMIT
    if skipped:
        cursor.execute(
            "select order_id from orders where tenant_id = %s order by order_id desc offset %s limit 1",
            [huge[0].tenant, skipped - 1],
        )
        ((last_of_the_page_before,),) = cursor.fetchall()
        asked[DEEP_BY_CURSOR.key] = [_list(huge[0], cursor=_cursor(huge[0], last_of_the_page_before))]
        asked[DEEP_BY_OFFSET.key] = [_list(huge[0], offset=str(skipped))]
    if of_the_huge >= FAR + LIMIT:
        asked[AT_OFFSET.key] = [_list(huge[0], offset=str(FAR))]
    return asked


def among_few(sampled: Samples, few: Sequence[Placed]) -> Asked:
    """What is asked in the empty database; the creates are the same ones."""
    gets = [_as(each, operations.get(each.order_id)) for each in few]
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
    return sorted({each.tenant for placed in sampled.values() for each in placed})


def _creates(sampled: Samples) -> dict[str, Sequence[Json]]:
    return {
        operation.key: [_as(each, operations.create()) for each in placed]
        for kind in (CREATES, UNSYNCED)
        for operation, placed in zip(kind, sampled.values(), strict=True)
    }


def _users_with_few(cursor: Any, placed: Sequence[Placed]) -> list[Placed]:
    """One order each of those users of the shop that have about ten."""
    by_user = {each.user: each for each in placed}
    cursor.execute(
        "select created_by, count(*) from orders where tenant_id = %s and created_by = any(%s) group by 1",
        [placed[0].tenant, list(by_user)],
    )
    return [by_user[user] for user, orders in cursor.fetchall() if orders in FEW]


def _as(placed: Placed, event: Json) -> Json:
    """The event, sent by the shop and the user of that order."""
    event["requestContext"]["authorizer"]["claims"] |= {"custom:tenant_id": placed.tenant, "sub": placed.user}
    return event


def _list(placed: Placed, **query: str) -> Json:
    event = operations.first_page()
    asked = {"limit": str(LIMIT), **query}
    event["queryStringParameters"] = asked
    event["multiValueQueryStringParameters"] = {name: [value] for name, value in asked.items()}
    return _as(placed, event)


def _cursor(placed: Placed, order_id: str) -> str:
    return cursor_after(UUID(order_id), Caller(placed.tenant, placed.user), my_orders=False)
