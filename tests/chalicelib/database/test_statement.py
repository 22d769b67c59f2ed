"""Statements: an INSERT of one or several rows with a clause after VALUES, and rows as named tuples."""

from typing import NamedTuple

import pytest

from chalicelib.database.statement import Insert, Statement
from tests.support.servers import scope_of
from tools.client import Client

INSERT_LINES = Insert(
    "INSERT INTO order_items (tenant_id, order_id, line_no, product_name, product_sku, quantity, unit_price)"
    " VALUES ",
    "(%(tenant_id)s, %(order_id)s::UUID, %(line_no)s, 'W', 'S', 1, 1)",
    " ON CONFLICT (tenant_id, order_id, line_no) DO NOTHING RETURNING line_no, tenant_id = %(tenant_id)s",
)


@pytest.mark.parametrize(("lines", "inserted"), [([1], []), ([2], [2]), ([1, 2, 3], [2, 3])])
def test_an_insert_of_any_rows_keeps_its_tail(
    alice: Client, tenant: str, lines: list[int], inserted: list[int]
) -> None:
    order_id = alice.place().json["order"]["order_id"]  # has line 1

    returned = scope_of(tenant).write(
        (INSERT_LINES, [{"order_id": order_id, "line_no": line_no} for line_no in lines])
    )

    assert returned == [(line_no, True) for line_no in inserted]


@pytest.mark.parametrize(("head", "tail"), [("%(line_no)s", ""), ("", "%(line_no)s")])
def test_only_rows_have_values_of_their_own(head: str, tail: str) -> None:
    with pytest.raises(ValueError, match="values of their own"):
        Insert(head, "()", tail)


def test_rows_have_the_names_of_their_type(alice: Client, tenant: str) -> None:
    class Placed(NamedTuple):
        order_id: str
        version: int

    order_id = alice.place().json["order"]["order_id"]
    text = "select order_id::text, version from orders where tenant_id = %(tenant_id)s"

    (row,) = scope_of(tenant).read(Statement(text, None, Placed))

    assert (row.order_id, row.version) == (order_id, 1)
