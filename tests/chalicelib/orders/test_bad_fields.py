"""Well-formed JSON with an invalid order: the answer lists each invalid field, and nothing is stored."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.refusals import (
    ITEM_TEXT_FIELDS,
    PRIVATE_ADDRESS,
    TEXT_FIELDS,
    CheckRefusal,
    order_body,
    short_id,
)
from tools.client import Client, item, seed


@pytest.mark.parametrize(
    "body", ["[]", '"order"', "7", "1.5", "1e400", "true", "null", f"[{order_body().decode()}]"]
)
def test_non_object_body_is_invalid(alice: Client, refused: CheckRefusal, body: str) -> None:
    refused(alice.place(raw=body.encode()), "validation", "body")


def test_all_missing_required_fields_are_reported_together(alice: Client, refused: CheckRefusal) -> None:
    refused(alice.place({}), "validation", "customer_name", "customer_email", "total_amount", "items")
    refused(
        alice.place(seed(items=[item(), {}])),
        "validation",
        *(f"items[1].{name}" for name in ("product_name", "product_sku", "quantity", "unit_price")),
    )


NOT_TEXT: list[Any] = [7, 1.5, True, [], {}, ["wrong-kind"], {"wrong": "wrong-kind"}]
BAD_TEXT = [
    "",
    " ",
    " " * 300,
    "\u00a0\u2003\u3000",
    "wrong\0text",
    "\0",
    "wrong\ntext",
    "wrong\ttext",
    "\nwrong\n",
    "wrong\x1btext",
    "wrong\x7ftext",
    "wrong\x85text",
    "wrong\x9ftext",
    "wrong\ufffdtext",
    "wrong\ud800text",
    "wrong\udfff",
    "\ude00\ud83dwrong",
    "wrong-" * 400,
    "wrong" * 20_000,
]


@pytest.mark.parametrize("value", [*NOT_TEXT, *BAD_TEXT], ids=short_id)
def test_invalid_text_is_rejected_in_every_field(alice: Client, refused: CheckRefusal, value: Any) -> None:
    order = seed(**dict.fromkeys(TEXT_FIELDS, value), items=[item(**dict.fromkeys(ITEM_TEXT_FIELDS, value))])

    answer = alice.place(order)

    refused(
        answer, "validation", *TEXT_FIELDS, *(f"items[0].{name}" for name in ITEM_TEXT_FIELDS), absent="wrong"
    )


@pytest.mark.parametrize("field", ["customer_name", "customer_email", "total_amount", "items"])
def test_required_order_field_may_not_be_null(alice: Client, refused: CheckRefusal, field: str) -> None:
    refused(alice.place(seed(**{field: None})), "validation", field)


@pytest.mark.parametrize("field", ["product_name", "product_sku", "quantity", "unit_price"])
def test_required_item_field_may_not_be_null(alice: Client, refused: CheckRefusal, field: str) -> None:
    refused(alice.place(seed(items=[item(), item(**{field: None})])), "validation", f"items[1].{field}")


@pytest.mark.parametrize(
    ("field", "length"),
    [
        ("customer_name", 255),
        ("customer_phone", 255),
        ("shipping_address", 2000),
        ("billing_address", 2000),
    ],
)
def test_text_over_its_maximum_length_is_rejected(
    alice: Client, refused: CheckRefusal, field: str, length: int
) -> None:
    refused(alice.place(seed(**{field: "𝄞" * (length + 1)})), "validation", field)
    assert alice.place(seed(**{field: f"  {'𝄞' * length}  "})).status == 201


@pytest.mark.parametrize(
    "email",
    ["wrong", "wrong@", "@wrong", "@@@@", "wrong@@x", "wrong@x@y", "wro ng@x", "wrong@x y", "w@" + "x" * 253],
    ids=short_id,
)
def test_invalid_email_is_rejected(alice: Client, refused: CheckRefusal, email: str) -> None:
    refused(alice.place(seed(customer_email=email)), "validation", "customer_email", absent=email)


@pytest.mark.parametrize(
    "currency", ["usd", "Usd", "XXX", "XTS", "US", "USDD", " USD", "USD ", "", "€", "840", 840, []]
)
def test_unknown_currency_is_rejected(alice: Client, refused: CheckRefusal, currency: Any) -> None:
    refused(alice.place(seed(currency=currency)), "validation", "currency", absent="XXX")


NOT_AMOUNTS = [
    "-0.01",
    "-1",
    "-1e400",
    "1000000000000",
    "999999999999.9991",
    "1e12",
    "1e400",
    "1e-400",
    "1e99999999999999999999",
    "1e-99999999999999999999",
    "1.234",
    "0.001",
    "0.10000000000000000001",
    "99.99000000000000000000000000000000000001",
    "9" * 300,
    "9" * 5_000,
    "-" + "9" * 5_000,
    "0." + "9" * 5_000,
    "9" * 1_000_000,
    "true",
    "false",
    "[]",
    "{}",
    '"wrong"',
    '""',
    '" 1"',
    '"1,000"',
    '"+1"',
    '"0x1"',
    '"1_000"',
    '"NaN"',
    '"Infinity"',
    '"-1"',
    '"0.10000000000000000001"',
    '"1.234"',
    '"٣"',
    '"1\\u0000"',
    '"1\\n"',
    '"\\ud800"',
    f'"{"9" * 5_000}"',
]


@pytest.mark.parametrize("amount", NOT_AMOUNTS, ids=short_id)
def test_invalid_amount_is_rejected(alice: Client, refused: CheckRefusal, amount: str) -> None:
    absent = amount.strip('"') if len(amount) > 5 else PRIVATE_ADDRESS

    total = alice.place(raw=order_body(total_amount=amount))
    price = alice.place(raw=order_body({"unit_price": amount}))

    refused(total, "validation", "total_amount", absent=absent)
    refused(price, "validation", "items[0].unit_price", absent=absent)


@pytest.mark.parametrize(
    ("currency", "amount"),
    [
        ("JPY", "1.5"),
        ("JPY", "0.1"),
        ("USD", "1.234"),
        ("KWD", "1.2345"),
        ("CLF", "1.23456"),
        ("KRW", '"1.5"'),
    ],
)
def test_excess_decimals_are_reported_per_field(
    alice: Client, refused: CheckRefusal, currency: str, amount: str
) -> None:
    valid_item = json.dumps(item(unit_price=1))
    invalid_item = valid_item.replace('"unit_price": 1', f'"unit_price": {amount}')

    one_invalid = alice.place(
        raw=order_body(
            total_amount="1", currency=f'"{currency}"', items=f"[{valid_item},{invalid_item},{valid_item}]"
        )
    )
    several_invalid = alice.place(
        raw=order_body(
            total_amount=amount,
            currency=f'"{currency}"',
            items=f"[{invalid_item},{valid_item},{invalid_item}]",
        )
    )

    refused(one_invalid, "validation", "items[1].unit_price", absent=amount)
    refused(
        several_invalid,
        "validation",
        "total_amount",
        "items[0].unit_price",
        "items[2].unit_price",
        absent=amount,
    )


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("99.99000000000000000000000000000000000000", "99.99"),
        ("0.1" + "0" * 5_000, "0.10"),
        ("1" + ".0" + "0" * 300, "1.00"),
        ('"5.5000"', "5.50"),
        ("5e-1", "0.50"),
        ("0e99999", "0.00"),
        ("999999999999.99", "999999999999.99"),
        ("0", "0.00"),
    ],
    ids=short_id,
)
def test_trailing_zeros_are_not_counted_as_decimals(alice: Client, sent: str, expected: str) -> None:
    answer = alice.place(raw=order_body({"unit_price": sent}, total_amount=sent))

    assert answer.status == 201
    assert f'"total_amount":{expected},'.encode() in answer.body
    assert f'"unit_price":{expected}}}'.encode() in answer.body


NOT_QUANTITIES = [
    "0",
    "0.0",
    "-0",
    "-1",
    "1000001",
    "1000000.5",
    "1.5",
    "0.5",
    "1.00000000000000000000000000000000001",
    "1e-400",
    "1e400",
    "1e99999999999999999999",
    "9" * 5_000,
    '"2"',
    '""',
    "true",
    "false",
    "[]",
    "[2]",
    "{}",
]


@pytest.mark.parametrize("quantity", NOT_QUANTITIES, ids=short_id)
def test_invalid_quantity_is_rejected(alice: Client, refused: CheckRefusal, quantity: str) -> None:
    absent = quantity if len(quantity) > 5 else PRIVATE_ADDRESS

    refused(
        alice.place(raw=order_body({"quantity": quantity})),
        "validation",
        "items[0].quantity",
        absent=absent,
    )


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("2.0", 2), ("2e0", 2), ("20e-1", 2), ("1", 1), ("1e6", 1_000_000), ("1000000", 1_000_000)],
)
def test_whole_number_quantity_is_accepted_in_any_notation(alice: Client, sent: str, stored: int) -> None:
    answer = alice.place(raw=order_body({"quantity": sent}))

    assert answer.status == 201
    assert f'"quantity":{stored},'.encode() in answer.body


@pytest.mark.parametrize("items", [[], {}, "wrong", 7, True, [item()] * 501, {"0": item()}], ids=short_id)
def test_items_other_than_1_to_500_are_rejected(alice: Client, refused: CheckRefusal, items: Any) -> None:
    refused(alice.place(seed(items=items)), "validation", "items", absent="wrong")


@pytest.mark.parametrize("line", [None, [], "wrong", 7, 1.5, True, [item()]], ids=short_id)
def test_non_object_item_is_rejected(alice: Client, refused: CheckRefusal, line: Any) -> None:
    refused(alice.place(seed(items=[item(), line])), "validation", "items[1]", absent="wrong")


@pytest.mark.parametrize(
    "name", ["tenant_id", "order_id", "created_by", "status", "version", "created_at", "updated_at"]
)
def test_server_set_field_is_rejected(alice: Client, refused: CheckRefusal, tenant: str, name: str) -> None:
    for value in ("wrong", tenant, None):
        answer = alice.place(seed(**{name: value}))
        refused(answer, "validation", name, absent="wrong")
        assert "set by the server" in answer.json["errors"][0]["message"]


def test_client_sent_line_number_is_rejected(alice: Client, refused: CheckRefusal) -> None:
    refused(alice.place(seed(items=[item(line_no=1)])), "validation", "items[0].line_no")


@pytest.mark.parametrize(
    "name", ["custommer_name", "Currency", "user_id", "email", "id", "__proto__", "__class__", "%s"]
)
def test_unknown_field_is_rejected(alice: Client, refused: CheckRefusal, name: str) -> None:
    refused(alice.place(seed(**{name: "wrong"})), "validation", name, absent="wrong")
    refused(
        alice.place(seed(items=[item(**{name: "wrong"})])), "validation", f"items[0].{name}", absent="wrong"
    )


@pytest.mark.parametrize(
    "name", ["\0", "a\nb", "\x7f", "\ufffd", "a\ud800", "x\udfff", "x" * 100_000, "'; --", '"'], ids=short_id
)
def test_unknown_member_with_any_name_is_rejected(alice: Client, refused: CheckRefusal, name: str) -> None:
    for order in (seed(**{name: "wrong"}), seed(items=[item(**{name: "wrong"})])):
        answer = alice.place(order)
        refused(answer, "validation", *answer.fields, absent="wrong")
        assert len(answer.fields) == 1
        assert len(answer.body) < 1_500


def test_error_response_size_is_bounded(alice: Client, refused: CheckRefusal) -> None:
    for order in (
        seed(items=[{}] * 500),
        seed(**{f"member-{number}": "wrong" for number in range(30_000)}),
    ):
        answer = alice.place(order)
        refused(answer, "validation", *answer.fields, absent="wrong")
        assert len(answer.body) < 20_000


# SQL


@pytest.mark.parametrize(
    "text",
    [
        "'; drop table orders; --",
        "x'); delete from order_items; --",
        "\\'; select set_tenant('other'); --",
        "%s %(tenant_id)s %% %",
        "$$; select pg_sleep(9); $$",
        ":tenant_id {tenant_id} {0} ?",
        'a"b\\"c\\\\d/e\\u0000',
        "' || (select 1) || '",
        " VALUES ",
    ],
)
def test_sql_in_any_field_is_stored_as_text(
    alice: Client, rows: Callable[..., list[tuple[Any, ...]]], tenant: str, text: str
) -> None:
    email = f"{''.join(text.split()).replace('@', '')}@x"
    order = seed(
        **{**dict.fromkeys(TEXT_FIELDS, text), "customer_email": email},
        items=[item(**dict.fromkeys(ITEM_TEXT_FIELDS, text))] * 2,
    )

    placed = alice.place(order)

    assert placed.status == 201
    read = alice.get(f"/{placed.headers['location']}").json["order"]
    assert alice.get("/orders").json["orders"] == [read]
    assert {name: read[name] for name in TEXT_FIELDS} == {
        **dict.fromkeys(TEXT_FIELDS, text.strip()),
        "customer_email": email,
    }
    assert [line[name] for line in read["items"] for name in ITEM_TEXT_FIELDS] == [text.strip()] * 4
    assert rows("select customer_name from orders where tenant_id = %s", tenant) == [(text.strip(),)]


SQL_WITHOUT_SPACES = "';drop/**/table/**/orders;--%s"


def test_sql_in_an_idempotency_key_is_plain_text(alice: Client) -> None:
    first, replayed = alice.place(key=SQL_WITHOUT_SPACES), alice.place(key=SQL_WITHOUT_SPACES)

    assert (first.status, replayed.status) == (201, 201)
    assert replayed.body == first.body


def test_sql_in_path_or_query_is_rejected(alice: Client, refused: CheckRefusal) -> None:
    sql = quote(SQL_WITHOUT_SPACES, safe="")

    refused(alice.get(f"/orders/{sql}"), "not-found")
    for name in ("limit", "offset", "my_orders", "cursor"):
        refused(alice.get(f"/orders?{name}={sql}"), "malformed-request", name, absent=SQL_WITHOUT_SPACES)
