"""Generates orders of many shops, as after years of business, and loads them with COPY.

The order of a number is deterministic: its id is known without a query, so that nothing is read into the
database's cache before it is measured.

Order times increase, and new shops open regularly: one for every ORDERS_A_TENANT orders, up to MAX_TENANTS.
One shop is huge. Of the others a few are large, and most are small: a shop's share of the orders decreases
with its rank (Zipf's law).
"""

import io
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

ORDERS_A_TENANT, MAX_TENANTS = 100, 100_000
HUGE = 0
"""The huge shop's rank."""
YOUNG = 1_000_000
"""Orders up to which the huge shop has half of all."""
SHARE_WHILE_YOUNG, SHARE_LATER = 0.51, 0.17
"""Of the orders, the huge shop's: 510,000 of the first million, and 20 % of ten millions."""
ORDERS_A_USER = 10
FIRST_ORDER = datetime(2024, 1, 1, tzinfo=UTC)
MILLISECONDS_APART = 5_000
"""Of two orders: ten million of them take a year and a half."""
MAX_ORDERS = 10_000_000
MAX_ITEMS = 3
BLOCK = 1_000
"""Orders that are made from one seed."""
CHUNK = 20 * BLOCK
"""Orders that are copied in one transaction."""
ORDER_COLUMNS = (
    *("tenant_id", "order_id", "created_by", "status", "version"),
    *("customer_name", "customer_email", "customer_phone", "shipping_address", "billing_address"),
    *("total_amount", "currency", "created_at", "updated_at"),
)
ITEM_COLUMNS = (
    *("tenant_id", "order_id", "line_no"),
    *("product_name", "product_sku", "quantity", "unit_price"),
)


@dataclass(frozen=True, slots=True)
class Placed:
    """One generated order."""

    number: int
    rank: int
    """Of its shop."""
    user_number: int
    order_id: str
    seed: int
    """Determines its items and their prices."""

    @property
    def tenant(self) -> str:
        return shop(self.rank)

    @property
    def user(self) -> str:
        return f"{self.user_number:08x}-0000-4000-8000-{self.rank:012x}"


def shop(rank: int) -> str:
    return f"shop-{rank}"


def tenants_at(number: int) -> int:
    """How many shops there are before this order is placed."""
    return min(MAX_TENANTS, number // ORDERS_A_TENANT + 1)


def huge_at(number: int) -> int:
    """The approximate number of the huge shop's orders before this order."""
    return int(min(number, YOUNG) * SHARE_WHILE_YOUNG + max(0, number - YOUNG) * SHARE_LATER)


def block(first: int) -> list[Placed]:
    """The BLOCK orders from this number on, which is a multiple of BLOCK."""
    chance = random.Random(first)  # noqa: S311 (the same orders in every run)
    return [_placed(number, chance) for number in range(first, first + BLOCK)]


def _placed(number: int, chance: random.Random) -> Placed:
    shops = tenants_at(number)
    if number % ORDERS_A_TENANT == ORDERS_A_TENANT - 1 and shops < MAX_TENANTS:
        rank = shops  # a shop's first order
    elif shops == 1 or chance.random() < (SHARE_WHILE_YOUNG if number < YOUNG else SHARE_LATER):
        rank = HUGE
    else:
        rank = int(math.exp(chance.random() * math.log(shops)))
    # About as many as the shop has orders by then, over ORDERS_A_USER.
    users = (huge_at(number) if rank == HUGE else number // (20 * rank)) // ORDERS_A_USER
    milliseconds = int(FIRST_ORDER.timestamp() * 1000) + number * MILLISECONDS_APART
    bits = chance.getrandbits(74)
    return Placed(number, rank, int(chance.random() * users), _uuid7(milliseconds, bits), bits & 0xFFFFFFFF)


def id_after_all() -> str:
    """An id greater than those of all orders that can be loaded, and less than those of new orders."""
    return _uuid7(int(FIRST_ORDER.timestamp() * 1000) + MAX_ORDERS * MILLISECONDS_APART, 0)


def _uuid7(milliseconds: int, bits: int) -> str:
    """RFC 9562, section 5.7, with 74 random bits."""
    low = bits & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | 7 << 76 | bits >> 62 << 64 | 2 << 62 | low))


def rows(placed: Placed) -> tuple[str, str]:
    """As lines of COPY's text format: the order's row, and those of its one to MAX_ITEMS items."""
    key, seed = f"{placed.tenant}\t{placed.order_id}", placed.seed
    items, cents = "", 0
    for line_no in range(1, 2 + seed % MAX_ITEMS):
        sku, quantity = (seed >> line_no) % 1000, 1 + (seed >> line_no) % 4
        price = 199 + (seed >> line_no) % 20_000
        cents += quantity * price
        items += (
            f"{key}\t{line_no}\tWidget {sku}\tWDG-{sku:04}\t{quantity}\t{price // 100}.{price % 100:02}\n"
        )
    moment = FIRST_ORDER.timestamp() + placed.number * MILLISECONDS_APART / 1000
    at = datetime.fromtimestamp(moment, UTC).isoformat()
    who = f"Customer {placed.user_number}\tc{placed.user_number}@{placed.tenant}.example\t+1234567890"
    street = f"{1 + seed % 999} Main St"
    order = (
        f"{key}\t{placed.user}\tpending\t1\t{who}\t{street}\t{street}\t{cents // 100}.{cents % 100:02}\tUSD"
        f"\t{at}\t{at}\n"
    )
    return order, items


def loaded_orders(cursor: Any) -> int:
    """The number of orders in this database; an interrupted load continues there."""
    cursor.execute("create table if not exists bench_load (orders bigint not null)")
    cursor.execute("insert into bench_load select 0 where not exists (select from bench_load)")
    cursor.execute("select orders from bench_load")
    ((orders,),) = cursor.fetchall()
    return int(orders)


def load(cursor: Any, first: int, end: int, advance: Callable[[float], None]) -> None:
    """Copy the orders from `first` to `end`, both multiples of BLOCK; `advance` gets each chunk's size."""
    for start in range(first, end, CHUNK):
        stop = min(end, start + CHUNK)
        cursor.execute("begin")
        copy(cursor, (placed for number in range(start, stop, BLOCK) for placed in block(number)))
        cursor.execute("update bench_load set orders = %s", [stop])
        cursor.execute("commit")
        advance(stop - start)


def copy(cursor: Any, placed: Iterable[Placed]) -> None:
    orders, items = io.StringIO(), io.StringIO()
    for order in placed:
        order_row, item_rows = rows(order)
        orders.write(order_row)
        items.write(item_rows)
    for table, columns, text in (("orders", ORDER_COLUMNS, orders), ("order_items", ITEM_COLUMNS, items)):
        text.seek(0)
        cursor.copy_expert(f"copy {table} ({', '.join(columns)}) from stdin", text)
