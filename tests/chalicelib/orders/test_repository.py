"""Placing, reading and listing orders, as the API contract specifies."""

import json
import re

import pytest

from local.database import Urls
from tests.conftest import NewClient
from tests.support.servers import api_on
from tools.client import Client, item, seed

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}000Z")


def test_seed_request_is_placed_unchanged(alice: Client, tenant: str) -> None:
    answer = alice.place()

    order = answer.json["order"]
    assert answer.status == 201
    assert answer.json["message"] == "Order created successfully"
    assert answer.headers["location"] == f"orders/{order['order_id']}"
    assert answer.headers["etag"] == '"1"'
    assert b'"total_amount":99.99,' in answer.body
    assert b'"unit_price":49.99}' in answer.body
    assert UUID7.fullmatch(order["order_id"])
    assert TIMESTAMP.fullmatch(order["created_at"])
    assert order["updated_at"] == order["created_at"]
    assert (order["tenant_id"], order["status"], order["version"]) == (tenant, "pending", 1)
    assert order["items"] == [{"line_no": 1, **item()}]
    assert {name: order[name] for name in seed() if name != "items"} == {
        name: value for name, value in seed().items() if name != "items"
    }


def test_order_reads_back_as_it_was_created(alice: Client) -> None:
    placed = alice.place(seed(customer_name='Zoë "Z" \\ 李', items=[item(), item(product_sku="B/2")]))

    read = alice.get(f"/orders/{placed.json['order']['order_id']}")

    assert read.status == 200
    assert read.headers["etag"] == '"1"'
    assert placed.body == b'{"message":"Order created successfully",' + read.body[1:]


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', '"7", "1"', "*"])
def test_matching_if_none_match_gets_304(alice: Client, etag: str) -> None:
    order_id = alice.place().json["order"]["order_id"]

    answer = alice.get(f"/orders/{order_id}", if_none_match=etag)

    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", '"1"')


def test_other_if_none_match_gets_the_order(alice: Client) -> None:
    order_id = alice.place().json["order"]["order_id"]

    assert alice.get(f"/orders/{order_id}", if_none_match='"2"').status == 200


def test_foreign_absent_and_malformed_ids_get_equal_404s(alice: Client, other_tenant: Client) -> None:
    order_id = alice.place().json["order"]["order_id"]

    def problem_of(client: Client, order_id: str) -> dict[str, object]:
        answer = client.get(f"/orders/{order_id}")
        assert answer.status == 404
        return {name: value for name, value in answer.json.items() if name != "request_id"}

    foreign = problem_of(other_tenant, order_id)
    assert foreign["type"] == "urn:order-api:problem:not-found"
    assert problem_of(other_tenant, "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f") == foreign
    for malformed in ("x", "1", "%00", "%27", order_id[:-1], order_id.replace("-", ""), f"{order_id}x"):
        assert problem_of(alice, malformed) == foreign


def test_orders_are_listed_newest_first(alice: Client) -> None:
    placed = [alice.place().json["order"] for _ in range(3)]

    answer = alice.get("/orders")

    assert answer.status == 200
    assert answer.json == {"orders": placed[::-1], "limit": 50, "offset": 0, "next_cursor": None}


def test_limit_and_offset_select_a_page(alice: Client) -> None:
    placed = [alice.place().json["order"]["order_id"] for _ in range(5)]

    page = alice.get("/orders?limit=2&offset=1").json

    assert [order["order_id"] for order in page["orders"]] == [placed[3], placed[2]]
    assert (page["limit"], page["offset"]) == (2, 1)


def test_cursors_visit_every_order_once(alice: Client) -> None:
    placed = [alice.place().json["order"]["order_id"] for _ in range(5)]

    page = alice.get("/orders?limit=2").json
    pages = [page["orders"]]
    while page["next_cursor"]:
        page = alice.get(f"/orders?limit=2&cursor={page['next_cursor']}").json
        assert page["offset"] is None
        pages.append(page["orders"])

    assert [len(orders) for orders in pages] == [2, 2, 1]
    assert [order["order_id"] for orders in pages for order in orders] == placed[::-1]


def test_page_of_large_orders_is_split_by_size(alice: Client) -> None:
    large = seed(items=[item(product_name="\U0001f600" * 255, product_sku="\U0001f600" * 200)] * 400)
    raw = json.dumps(large, ensure_ascii=False).encode()
    placed = [alice.place(raw=raw).json["order"]["order_id"] for _ in range(5)]

    page = alice.get("/orders").json
    pages = [page["orders"]]
    while page["next_cursor"]:
        answer = alice.get(f"/orders?cursor={page['next_cursor']}")
        assert len(answer.body) < 2 * 1024 * 1024
        page = answer.json
        pages.append(page["orders"])

    assert [len(orders) for orders in pages] == [2, 2, 1]
    assert [order["order_id"] for orders in pages for order in orders] == placed[::-1]


def test_full_last_page_has_no_cursor(alice: Client) -> None:
    for _ in range(2):
        alice.place()

    assert alice.get("/orders?limit=2").json["next_cursor"] is None


def test_my_orders_returns_only_the_users_orders(alice: Client, client: NewClient) -> None:
    bob = client(user="bob")
    alices_order, bobs_order = alice.place().json["order"], bob.place().json["order"]

    assert alice.get("/orders?my_orders=true").json["orders"] == [alices_order]
    assert alice.get("/orders?my_orders=false").json["orders"] == [bobs_order, alices_order]
    assert bob.get("/orders?my_orders=true").json["orders"] == [bobs_order]


def test_cursor_is_valid_only_for_its_own_list(
    alice: Client, client: NewClient, other_tenant: Client
) -> None:
    bob = client(user="bob")
    for caller in (alice, alice, bob, bob):
        caller.place()
    tenant_cursor = alice.get("/orders?limit=1").json["next_cursor"]
    user_cursor = alice.get("/orders?limit=1&my_orders=true").json["next_cursor"]

    assert bob.get(f"/orders?cursor={tenant_cursor}").status == 200
    for answer in (
        other_tenant.get(f"/orders?cursor={tenant_cursor}"),
        alice.get(f"/orders?my_orders=true&cursor={tenant_cursor}"),
        alice.get(f"/orders?cursor={user_cursor}"),
        bob.get(f"/orders?my_orders=true&cursor={user_cursor}"),
    ):
        assert (answer.status, answer.slug, answer.fields) == (400, "malformed-request", ["cursor"])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=abc", "limit"),
        ("limit=", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=%D9%A5", "limit"),
        ("limit=1.0", "limit"),
        ("limit=1&limit=2", "limit"),
        ("offset=-1", "offset"),
        ("offset=9223372036854775808", "offset"),
        ("offset=" + "9" * 5000, "offset"),
        ("my_orders=yes", "my_orders"),
        ("my_orders=True", "my_orders"),
        ("my_orders=", "my_orders"),
        ("cursor=", "cursor"),
        ("cursor=garbage", "cursor"),
        ("cursor=%00%ff", "cursor"),
        ("cursor=" + "A" * 32, "cursor"),
        ("cursor=" + "A" * 32 + "&offset=0", "offset"),
        ("tenant_id=acme", "tenant_id"),
        ("Limit=5", "Limit"),
    ],
)
def test_invalid_query_parameter_is_rejected(alice: Client, query: str, field: str) -> None:
    answer = alice.get(f"/orders?{query}")

    assert (answer.status, answer.slug, answer.fields) == (400, "malformed-request", [field])


def test_largest_query_parameter_values_are_accepted(alice: Client) -> None:
    assert alice.get("/orders?limit=100&offset=9223372036854775807&my_orders=false").json["orders"] == []


def test_query_parameters_on_other_routes_are_rejected(alice: Client) -> None:
    order_id = alice.place().json["order"]["order_id"]

    for answer in (
        alice.get(f"/orders/{order_id}?tenant_id=acme"),
        alice.send("POST", "/orders?tenant_id=acme", b"{}", {"content-type": "application/json"}),
    ):
        assert (answer.status, answer.fields) == (400, ["tenant_id"])


def test_amounts_have_their_currencys_decimals(alice: Client) -> None:
    for currency, sent, answered in (
        ("JPY", "100", "100"),
        ("JPY", "100.000", "100"),
        ("USD", "100", "100.00"),
        ("USD", "1e2", "100.00"),
        ("USD", "-0.0", "0.00"),
        ("KWD", "1.5", "1.500"),
        ("KWD", "999999999999.999", "999999999999.999"),
        ("CLF", "0.0001", "0.0001"),
        ("USD", '"99.99"', "99.99"),
    ):
        body = (
            b'{"customer_name":"J","customer_email":"j@x","total_amount":%s,"currency":"%s","items":[%s]}'
            % (
                sent.encode(),
                currency.encode(),
                b'{"product_name":"W","product_sku":"S","quantity":1,"unit_price":%s}' % sent.encode(),
            )
        )
        placed = alice.place(raw=body)
        assert placed.status == 201, placed.body
        assert f'"total_amount":{answered},'.encode() in placed.body
        assert f'"unit_price":{answered}}}'.encode() in placed.body
        read = alice.get(f"/{placed.headers['location']}")
        assert placed.body.endswith(read.body[len(b'{"order":') :])


def test_optional_fields_may_be_absent_or_null(alice: Client) -> None:
    order = {name: seed()[name] for name in ("customer_name", "customer_email", "total_amount", "items")}

    for answer in (
        alice.place(order),
        alice.place({**order, "customer_phone": None, "billing_address": None}),
    ):
        assert answer.status == 201
        placed = answer.json["order"]
        assert placed["currency"] == "USD"
        assert [placed[name] for name in ("customer_phone", "shipping_address", "billing_address")] == [
            None
        ] * 3


def test_text_is_trimmed(alice: Client) -> None:
    order = alice.place(seed(customer_name="  John Doe \u00a0")).json["order"]

    assert order["customer_name"] == "John Doe"


def test_order_limits_are_inclusive(alice: Client) -> None:
    order = seed(
        customer_name="x" * 255,
        customer_email="a@" + "b" * 252,
        shipping_address="李" * 2000,
        items=[item(quantity=1_000_000)] * 500,
    )

    answer = alice.place(order)

    assert answer.status == 201
    assert [line["line_no"] for line in answer.json["order"]["items"]] == list(range(1, 501))
    assert answer.body.endswith(alice.get(f"/{answer.headers['location']}").body[len(b'{"order":') :])


@pytest.mark.parametrize("prepare", ["on", "off"])
def test_largest_page_has_a_next_cursor(alice: Client, database: Urls, prepare: str) -> None:
    with api_on(database.app, DB_PREPARE=prepare):
        placed = [alice.place().json["order"]["order_id"] for _ in range(101)]

        first = alice.get("/orders?limit=100").json
        rest = alice.get(f"/orders?limit=100&cursor={first['next_cursor']}").json

    assert [order["order_id"] for page in (first, rest) for order in page["orders"]] == placed[::-1]
    assert rest["next_cursor"] is None
