"""Requests that must be refused: which check answers first, what it says, and that nothing is stored."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any
from urllib.parse import quote

import pytest

from tests.client import SEED_BYTES, Answer, Client, item, seed
from tests.conftest import NewClient

Refused = Callable[..., None]

MIB = 1024 * 1024
UNSAID = "12 Never-Repeated-Street"
STATUS = {
    "malformed-request": 400,
    "unauthorized": 401,
    "missing-tenant": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "validation": 422,
}
TEXT_FIELDS = ("customer_name", "customer_email", "customer_phone", "shipping_address", "billing_address")
ITEM_TEXT_FIELDS = ("product_name", "product_sku")


def written(item_: Mapping[str, str] | None = None, /, **members: str) -> bytes:
    """The seed order with the JSON text of some members replaced, of its item's too."""

    def text(values: Mapping[str, Any], texts: Mapping[str, str]) -> str:
        found = {**{name: json.dumps(value) for name, value in values.items()}, **texts}
        return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in found.items()) + "}"

    items = f"[{text(item(), item_ or {})}]"
    return text(seed(shipping_address=UNSAID), {"items": items, **members}).encode()


def brief(value: Any) -> str:
    return ascii(value)[:40]


@pytest.fixture
def refused(rows: Callable[..., list[tuple[Any, ...]]], tenant: str) -> Refused:
    """Checks what an answer says, what it does not repeat, and that the tenant still has no rows."""

    def check(answer: Answer, slug: str, *fields: str, unsaid: str = UNSAID) -> None:
        assert (answer.status, answer.slug) == (STATUS[slug], slug), answer.body
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["status"] == answer.status
        if slug in ("validation", "malformed-request"):
            assert answer.fields == list(fields)
        assert all(error["message"] for error in answer.json["errors"])
        said = json.dumps({**answer.json, "request_id": ""}, ensure_ascii=False)
        assert UNSAID not in said
        assert unsaid not in said
        assert rows(
            "select (select count(*) from orders where tenant_id = %s)"
            " + (select count(*) from order_items where tenant_id = %s)"
            " + (select count(*) from idempotency_keys where tenant_id = %s)",
            *[tenant] * 3,
        ) == [(0,)]

    return check


# The order of the checks


CHECKS = {
    "path": "not-found",
    "method": "method-not-allowed",
    "token": "unauthorized",
    "tenant": "missing-tenant",
    "size": "payload-too-large",
    "content type": "unsupported-media-type",
    "syntax": "malformed-request",
    "fields": "validation",
}


def breaking(client: NewClient, nobody: Client, *broken: str) -> Answer:
    """A request that every one of these checks would refuse."""
    caller = client(tenant=None) if "tenant" in broken else client()
    if "token" in broken:
        caller = nobody
    body = json.dumps(seed(shipping_address=UNSAID, quantity=1) if "fields" in broken else seed()).encode()
    body = body[:-1] if "syntax" in broken else body
    return caller.send(
        "PUT" if "method" in broken else "POST",
        "/orders/" if "path" in broken else "/orders",
        body.ljust(MIB + 1) if "size" in broken else body,
        {"content-type": "text/plain" if "content type" in broken else "application/json"},
    )


@pytest.mark.parametrize(("first", "second"), list(combinations(CHECKS, 2)))
def test_of_two_failing_checks_the_first_answers(
    client: NewClient, nobody: Client, refused: Refused, first: str, second: str
) -> None:
    answer = breaking(client, nobody, first, second)

    refused(answer, CHECKS[first], *(["quantity"] if first == "fields" else []))


@pytest.mark.parametrize("first", range(len(CHECKS)))
def test_of_all_failing_checks_the_first_answers(
    client: NewClient, nobody: Client, refused: Refused, first: int
) -> None:
    broken = list(CHECKS)[first:]

    answer = breaking(client, nobody, *broken)

    refused(answer, CHECKS[broken[0]], *(["quantity"] if broken == ["fields"] else []))


def test_nothing_broken_is_placed(client: NewClient, nobody: Client) -> None:
    assert breaking(client, nobody).status == 201


def test_a_wrong_order_is_read_to_its_end_before_its_fields_are_judged(
    alice: Client, refused: Refused
) -> None:
    for late in ('{"deep":' * 32 + "1" + "}" * 32, '{"a":1,"a":2}', "NaN"):
        answer = alice.place(raw=written(currency='"nothing"', unknown=late))
        refused(answer, "malformed-request", *(["a"] if '"a"' in late else []))


# Size and content type


def test_a_body_of_one_mebibyte_is_read(alice: Client) -> None:
    assert alice.place(raw=SEED_BYTES.ljust(MIB)).status == 201


@pytest.mark.parametrize("body", [b" " * (MIB + 1), b"x" * (3 * MIB), SEED_BYTES.ljust(MIB + 1)], ids=brief)
def test_a_body_beyond_one_mebibyte_is_too_large(alice: Client, refused: Refused, body: bytes) -> None:
    refused(alice.place(raw=body), "payload-too-large")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/problem+json",
        "application/jsonp",
        "application/json5; charset=utf-8",
        "text/plain; application/json",
        "*/*",
        "wrong",
    ],
)
def test_other_content_types_are_refused(alice: Client, refused: Refused, content_type: str) -> None:
    answer = alice.send("POST", "/orders", written(), {"content-type": content_type})

    refused(answer, "unsupported-media-type", unsaid=content_type)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "application/json;charset=UTF-8"},
        {"content-type": "Application/JSON"},
        {"Content-Type": "application/json ; odata=verbose"},
    ],
    ids=str,
)
def test_json_is_accepted_however_it_is_declared(alice: Client, headers: dict[str, str]) -> None:
    assert alice.send("POST", "/orders", SEED_BYTES, headers).status == 201


# Bodies as API Gateway hands them over


@pytest.fixture
def post(app: Any, client: NewClient) -> Callable[..., Answer]:
    """Calls the app with an API Gateway event of our making."""
    sent: dict[str, str] = {}

    def keep(_method: str, _target: str, headers: Mapping[str, str], _body: bytes) -> Answer:
        sent.update(headers)
        return Answer(0, {}, b"")

    client(transport=keep).place()

    def call(body: str | None, is_base64: bool = False) -> Answer:
        event = {
            "requestContext": {"resourcePath": "/orders", "httpMethod": "POST", "requestId": "event-1"},
            "headers": sent,
            "pathParameters": None,
            "multiValueQueryStringParameters": None,
            "stageVariables": None,
            "body": body,
            "isBase64Encoded": is_base64,
        }
        answer = app(event, None)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        return Answer(answer["statusCode"], headers, answer["body"].encode())

    return call


def test_a_base64_body_is_decoded(post: Callable[..., Answer]) -> None:
    order = json.dumps(seed(customer_name="Zoë 李"), ensure_ascii=False).encode()

    answer = post(base64.b64encode(order).decode(), is_base64=True)

    assert answer.status == 201
    assert answer.json["order"]["customer_name"] == "Zoë 李"


def test_base64_with_foreign_characters_is_refused(post: Callable[..., Answer]) -> None:
    encoded = base64.b64encode(SEED_BYTES).decode()

    for broken in (
        encoded[:8] + "!" + encoded[8:],
        encoded + "#",
        encoded[:-1],
        encoded.replace("A", "\n", 1),
    ):
        assert post(broken, is_base64=True).slug == "malformed-request"


def test_a_text_body_is_read_as_it_is(post: Callable[..., Answer]) -> None:
    answer = post(json.dumps(seed(customer_name="Zoë 李"), ensure_ascii=False))

    assert answer.json["order"]["customer_name"] == "Zoë 李"


@pytest.mark.parametrize(
    "body",
    ["!", "garbage!!", "e30", "=", "%%%%", "Zoë", "\ud800", "", "/////w==", base64.b64encode(b"{").decode()],
    ids=brief,
)
def test_a_garbled_base64_body_is_malformed(post: Callable[..., Answer], refused: Refused, body: str) -> None:
    refused(post(body, is_base64=True), "malformed-request")


@pytest.mark.parametrize("body", [None, "", "\ud800", '{"a":"\ud800"}'], ids=brief)
def test_a_text_body_that_is_no_unicode_is_malformed(
    post: Callable[..., Answer], refused: Refused, body: str | None
) -> None:
    refused(post(body), "malformed-request")


def test_the_size_of_a_base64_body_is_that_of_its_bytes(post: Callable[..., Answer]) -> None:
    for length, status in ((MIB, 201), (MIB + 1, 413)):
        answer = post(base64.b64encode(SEED_BYTES.ljust(length)).decode(), is_base64=True)
        assert answer.status == status


# Syntax


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n\t",
        b"\0",
        b"{",
        b"}",
        b"nothing",
        b"<order/>",
        b"customer_name=J",
        written()[:-1],
        written() + b"x",
        written() + written(),
        written() + b"\0",
        written().replace(b'"USD"', b"'USD'"),
        written().replace(b":2,", b":2,,"),
        written().replace(b"}]", b",}]"),
        b"/* order */" + written(),
        written(customer_phone='"a\0b"'),
        written(customer_phone='"a\tb"'),
        written(customer_phone='"a\nb"'),
        written(customer_phone='"\\x"'),
        written(customer_phone='"\\u12"'),
        written(customer_phone="True"),
        written(customer_phone="undefined"),
    ],
    ids=brief,
)
def test_what_is_not_json_is_malformed(alice: Client, refused: Refused, body: bytes) -> None:
    refused(alice.place(raw=body), "malformed-request")


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + written(),
        written().decode().encode("utf-16"),
        written().decode().encode("utf-16-le"),
        written().decode().encode("utf-32"),
        written(customer_name='"Zoë"').decode().encode("latin-1"),
        written().replace(b"John", b"\xff"),
        written().replace(b"John", b"\xc0\x80"),
        written().replace(b"John", b"\xed\xa0\x80"),
        written().replace(b"John", b"\xf4\x90\x80\x80"),
        written().replace(b"customer_name", b"\xe2\x82"),
    ],
    ids=brief,
)
def test_what_is_not_utf_8_is_malformed(alice: Client, refused: Refused, body: bytes) -> None:
    refused(alice.place(raw=body), "malformed-request")


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "+1",
        "01",
        "-01",
        ".5",
        "1.",
        "1e",
        "0x10",
        "1_0",
        "1,5",
        "-",
        "٣",
    ],
)
@pytest.mark.parametrize("member", ["total_amount", "unknown"])
def test_what_is_no_json_number_is_malformed(
    alice: Client, refused: Refused, number: str, member: str
) -> None:
    refused(alice.place(raw=written(**{member: number})), "malformed-request")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (written()[:-1] + b',"currency":"USD"}', "currency"),
        (written()[:-1] + b',"curr\\u0065ncy":"USD"}', "currency"),
        (written()[:-1] + b',"currency":null}', "currency"),
        (written({'product_sku":"B","product_sku': '"C"'}).replace(b'\\"', b'"'), "product_sku"),
        (written(unknown='{"a":{"b":1,"c":2,"b":1}}'), "b"),
        (written(unknown='[{"":1,"":1}]'), ""),
        (written(unknown='{"\\u0000":1,"\\u0000":1}'), "\0"),
        (written(unknown='{"\\ud800":1,"\\ud800":1}'), "?"),
        (b'{"tenant_id":"a","tenant_id":"b"}', "tenant_id"),
    ],
    ids=brief,
)
def test_a_repeated_member_is_named(alice: Client, refused: Refused, body: bytes, name: str) -> None:
    refused(alice.place(raw=body), "malformed-request", name)


def test_one_repeated_member_among_very_many_is_found_at_once(alice: Client, refused: Refused) -> None:
    members = ",".join(f'"{number}":0' for number in range(50_000))
    started = time.monotonic()

    answer = alice.place(raw=b'{%s,"49999":0}' % members.encode())

    assert time.monotonic() - started < 5
    refused(answer, "malformed-request", "49999")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        written(unknown="[" * 32 + "]" * 32),
        written(customer_name='[{"a":' * 16 + "1" + "}]" * 16),
        written({"quantity": "[" * 30 + "]" * 30})
        .replace(b"[" * 30, b"[" * 31)
        .replace(b"]" * 30, b"]" * 31),
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 500_000 + b"]" * 500_000,
        b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
        written(unknown="[" * 10_000 + "]" * 10_000),
    ],
    ids=brief,
)
def test_nesting_beyond_32_levels_is_malformed(alice: Client, refused: Refused, body: bytes) -> None:
    refused(alice.place(raw=body), "malformed-request")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[" * 32 + b"]" * 32, "body"),
        (written(unknown="[" * 31 + "]" * 31), "unknown"),
        (written({"quantity": "[" * 29 + "]" * 29}), "items[0].quantity"),
    ],
    ids=brief,
)
def test_nesting_of_32_levels_is_read(alice: Client, refused: Refused, body: bytes, field: str) -> None:
    refused(alice.place(raw=body), "validation", field)


# Fields


@pytest.mark.parametrize(
    "body", ["[]", '"order"', "7", "1.5", "1e400", "true", "null", f"[{written().decode()}]"]
)
def test_a_body_that_is_no_object_is_invalid(alice: Client, refused: Refused, body: str) -> None:
    refused(alice.place(raw=body.encode()), "validation", "body")


def test_every_required_field_is_named_at_once(alice: Client, refused: Refused) -> None:
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


@pytest.mark.parametrize("value", [*NOT_TEXT, *BAD_TEXT], ids=brief)
def test_wrong_text_is_named_in_every_field(alice: Client, refused: Refused, value: Any) -> None:
    order = seed(**dict.fromkeys(TEXT_FIELDS, value), items=[item(**dict.fromkeys(ITEM_TEXT_FIELDS, value))])

    answer = alice.place(order)

    refused(
        answer, "validation", *TEXT_FIELDS, *(f"items[0].{name}" for name in ITEM_TEXT_FIELDS), unsaid="wrong"
    )


@pytest.mark.parametrize("field", ["customer_name", "customer_email", "total_amount", "items"])
def test_what_is_required_may_not_be_null(alice: Client, refused: Refused, field: str) -> None:
    refused(alice.place(seed(**{field: None})), "validation", field)


@pytest.mark.parametrize("field", ["product_name", "product_sku", "quantity", "unit_price"])
def test_what_is_required_of_an_item_may_not_be_null(alice: Client, refused: Refused, field: str) -> None:
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
def test_text_ends_at_its_length(alice: Client, refused: Refused, field: str, length: int) -> None:
    refused(alice.place(seed(**{field: "𝄞" * (length + 1)})), "validation", field)
    assert alice.place(seed(**{field: f"  {'𝄞' * length}  "})).status == 201


@pytest.mark.parametrize(
    "email",
    ["wrong", "wrong@", "@wrong", "@@@@", "wrong@@x", "wrong@x@y", "wro ng@x", "wrong@x y", "w@" + "x" * 253],
    ids=brief,
)
def test_a_wrong_email_is_named(alice: Client, refused: Refused, email: str) -> None:
    refused(alice.place(seed(customer_email=email)), "validation", "customer_email", unsaid=email)


@pytest.mark.parametrize(
    "currency", ["usd", "Usd", "XXX", "XTS", "US", "USDD", " USD", "USD ", "", "€", "840", 840, []]
)
def test_what_is_no_currency_is_named(alice: Client, refused: Refused, currency: Any) -> None:
    refused(alice.place(seed(currency=currency)), "validation", "currency", unsaid="XXX")


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


@pytest.mark.parametrize("amount", NOT_AMOUNTS, ids=brief)
def test_a_wrong_amount_is_named(alice: Client, refused: Refused, amount: str) -> None:
    unsaid = amount.strip('"') if len(amount) > 5 else UNSAID

    total = alice.place(raw=written(total_amount=amount))
    price = alice.place(raw=written({"unit_price": amount}))

    refused(total, "validation", "total_amount", unsaid=unsaid)
    refused(price, "validation", "items[0].unit_price", unsaid=unsaid)


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
def test_decimals_beyond_the_currencys_are_named_where_they_stand(
    alice: Client, refused: Refused, currency: str, amount: str
) -> None:
    good = json.dumps(item(unit_price=1))
    bad = good.replace('"unit_price": 1', f'"unit_price": {amount}')

    one = alice.place(raw=written(total_amount="1", currency=f'"{currency}"', items=f"[{good},{bad},{good}]"))
    all_ = alice.place(
        raw=written(total_amount=amount, currency=f'"{currency}"', items=f"[{bad},{good},{bad}]")
    )

    refused(one, "validation", "items[1].unit_price", unsaid=amount)
    refused(all_, "validation", "total_amount", "items[0].unit_price", "items[2].unit_price", unsaid=amount)


@pytest.mark.parametrize(
    ("sent", "answered"),
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
    ids=brief,
)
def test_surplus_zeros_are_no_decimals(alice: Client, sent: str, answered: str) -> None:
    answer = alice.place(raw=written({"unit_price": sent}, total_amount=sent))

    assert answer.status == 201
    assert f'"total_amount":{answered},'.encode() in answer.body
    assert f'"unit_price":{answered}}}'.encode() in answer.body


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


@pytest.mark.parametrize("quantity", NOT_QUANTITIES, ids=brief)
def test_a_wrong_quantity_is_named(alice: Client, refused: Refused, quantity: str) -> None:
    unsaid = quantity if len(quantity) > 5 else UNSAID

    refused(
        alice.place(raw=written({"quantity": quantity})),
        "validation",
        "items[0].quantity",
        unsaid=unsaid,
    )


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("2.0", 2), ("2e0", 2), ("20e-1", 2), ("1", 1), ("1e6", 1_000_000), ("1000000", 1_000_000)],
)
def test_a_whole_number_is_a_quantity_however_it_is_written(alice: Client, sent: str, stored: int) -> None:
    answer = alice.place(raw=written({"quantity": sent}))

    assert answer.status == 201
    assert f'"quantity":{stored},'.encode() in answer.body


@pytest.mark.parametrize("items", [[], {}, "wrong", 7, True, [item()] * 501, {"0": item()}], ids=brief)
def test_items_are_a_list_of_1_to_500(alice: Client, refused: Refused, items: Any) -> None:
    refused(alice.place(seed(items=items)), "validation", "items", unsaid="wrong")


@pytest.mark.parametrize("line", [None, [], "wrong", 7, 1.5, True, [item()]], ids=brief)
def test_an_item_that_is_no_object_is_named(alice: Client, refused: Refused, line: Any) -> None:
    refused(alice.place(seed(items=[item(), line])), "validation", "items[1]", unsaid="wrong")


@pytest.mark.parametrize(
    "name", ["tenant_id", "order_id", "created_by", "status", "version", "created_at", "updated_at"]
)
def test_a_field_of_the_servers_is_refused(alice: Client, refused: Refused, tenant: str, name: str) -> None:
    for value in ("wrong", tenant, None):
        answer = alice.place(seed(**{name: value}))
        refused(answer, "validation", name, unsaid="wrong")
        assert "set by the server" in answer.json["errors"][0]["message"]


def test_a_line_number_is_the_servers(alice: Client, refused: Refused) -> None:
    refused(alice.place(seed(items=[item(line_no=1)])), "validation", "items[0].line_no")


@pytest.mark.parametrize(
    "name", ["custommer_name", "Currency", "user_id", "email", "id", "__proto__", "__class__", "%s"]
)
def test_an_unknown_field_is_named(alice: Client, refused: Refused, name: str) -> None:
    refused(alice.place(seed(**{name: "wrong"})), "validation", name, unsaid="wrong")
    refused(
        alice.place(seed(items=[item(**{name: "wrong"})])), "validation", f"items[0].{name}", unsaid="wrong"
    )


@pytest.mark.parametrize(
    "name", ["\0", "a\nb", "\x7f", "\ufffd", "a\ud800", "x\udfff", "x" * 100_000, "'; --", '"'], ids=brief
)
def test_a_member_of_any_name_is_refused(alice: Client, refused: Refused, name: str) -> None:
    for order in (seed(**{name: "wrong"}), seed(items=[item(**{name: "wrong"})])):
        answer = alice.place(order)
        refused(answer, "validation", *answer.fields, unsaid="wrong")
        assert len(answer.fields) == 1
        assert len(answer.body) < 1_500


def test_very_many_mistakes_make_no_very_long_answer(alice: Client, refused: Refused) -> None:
    for order in (
        seed(items=[{}] * 500),
        seed(**{f"member-{number}": "wrong" for number in range(30_000)}),
    ):
        answer = alice.place(order)
        refused(answer, "validation", *answer.fields, unsaid="wrong")
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
def test_sql_is_text_in_every_field(
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


def test_sql_is_text_in_an_idempotency_key(alice: Client) -> None:
    first, again = alice.place(key=SQL_WITHOUT_SPACES), alice.place(key=SQL_WITHOUT_SPACES)

    assert (first.status, again.status) == (201, 201)
    assert again.body == first.body


def test_sql_in_an_address_finds_nothing(alice: Client, refused: Refused) -> None:
    sql = quote(SQL_WITHOUT_SPACES, safe="")

    refused(alice.get(f"/orders/{sql}"), "not-found")
    for name in ("limit", "offset", "my_orders", "cursor"):
        refused(alice.get(f"/orders?{name}={sql}"), "malformed-request", name, unsaid=SQL_WITHOUT_SPACES)


# Idempotency-Key


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "k" * 256,
        "two words",
        "k\tk",
        "k\0",
        "\x7f",
        "schlüssel",
        "鍵",
        '"',
        '"unbalanced',
        '""',
        '"a"b"',
        '"a b"',
        f'"{"k" * 256}"',
        '"k\\"',
    ],
    ids=brief,
)
def test_a_wrong_idempotency_key_is_named(alice: Client, refused: Refused, key: str) -> None:
    answer = alice.send("POST", "/orders", written(), {"Idempotency-Key": key})

    refused(answer, "malformed-request", "Idempotency-Key", unsaid=key if len(key) > 3 else UNSAID)


@pytest.mark.parametrize("key", ["k", "k" * 255, f'"{"k" * 255}"', "~!@#$%^&*()", '"k\\"\\\\"'], ids=brief)
def test_the_longest_and_the_oddest_keys_are_accepted(alice: Client, key: str) -> None:
    assert alice.place(key=key).status == 201
