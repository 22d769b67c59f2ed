"""Malformed requests: the order of the checks, their answers, and that no row is stored."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import pytest

from tests.conftest import NewClient
from tests.support.refusals import MIB, PRIVATE_ADDRESS, CheckRefusal, order_body, short_id
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Answer, Client, seed

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


def send_broken(client: NewClient, anonymous: Client, *broken: str) -> Answer:
    """Sends a request that fails the named checks."""
    caller = client(tenant=None) if "tenant" in broken else client()
    if "token" in broken:
        caller = anonymous
    body = json.dumps(
        seed(shipping_address=PRIVATE_ADDRESS, quantity=1) if "fields" in broken else seed()
    ).encode()
    body = body[:-1] if "syntax" in broken else body
    return caller.send(
        "PUT" if "method" in broken else "POST",
        "/orders/" if "path" in broken else "/orders",
        body.ljust(MIB + 1) if "size" in broken else body,
        {"content-type": "text/plain" if "content type" in broken else "application/json"},
    )


@pytest.mark.parametrize(("first", "second"), list(combinations(CHECKS, 2)))
def test_first_of_two_failing_checks_is_reported(
    client: NewClient, anonymous: Client, refused: CheckRefusal, first: str, second: str
) -> None:
    answer = send_broken(client, anonymous, first, second)

    refused(answer, CHECKS[first], *(["quantity"] if first == "fields" else []))


@pytest.mark.parametrize("first", range(len(CHECKS)))
def test_first_of_all_failing_checks_is_reported(
    client: NewClient, anonymous: Client, refused: CheckRefusal, first: int
) -> None:
    broken = list(CHECKS)[first:]

    answer = send_broken(client, anonymous, *broken)

    refused(answer, CHECKS[broken[0]], *(["quantity"] if broken == ["fields"] else []))


def test_request_that_passes_every_check_is_placed(client: NewClient, anonymous: Client) -> None:
    assert send_broken(client, anonymous).status == 201


def test_malformed_json_is_reported_before_field_errors(alice: Client, refused: CheckRefusal) -> None:
    for syntax_error in ('{"deep":' * 32 + "1" + "}" * 32, '{"a":1,"a":2}', "NaN"):
        answer = alice.place(raw=order_body(currency='"nothing"', unknown=syntax_error))
        refused(answer, "malformed-request", *(["a"] if '"a"' in syntax_error else []))


# Size and content type


def test_body_of_one_mebibyte_is_accepted(alice: Client) -> None:
    assert alice.place(raw=SEED_BYTES.ljust(MIB)).status == 201


@pytest.mark.parametrize(
    "body", [b" " * (MIB + 1), b"x" * (3 * MIB), SEED_BYTES.ljust(MIB + 1)], ids=short_id
)
def test_body_over_one_mebibyte_is_too_large(alice: Client, refused: CheckRefusal, body: bytes) -> None:
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
def test_other_content_types_are_refused(alice: Client, refused: CheckRefusal, content_type: str) -> None:
    answer = alice.send("POST", "/orders", order_body(), {"content-type": content_type})

    refused(answer, "unsupported-media-type", absent=content_type)


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
def test_json_content_type_spellings_are_accepted(alice: Client, headers: dict[str, str]) -> None:
    assert alice.send("POST", "/orders", SEED_BYTES, headers).status == 201


# Bodies in API Gateway's events


@pytest.fixture
def post(app: Any, client: NewClient) -> Callable[..., Answer]:
    """Calls the app with an event in API Gateway's format, as Lambda does."""
    client_headers: dict[str, str] = {}

    def record_headers(_method: str, _target: str, headers: Mapping[str, str], _body: bytes) -> Answer:
        client_headers.update(headers)
        return Answer(0, {}, b"")

    client(transport=record_headers).place()

    def invoke(body: str | None, is_base64: bool = False) -> Answer:
        event = {
            "requestContext": {"resourcePath": "/orders", "httpMethod": "POST", "requestId": "event-1"},
            "headers": client_headers,
            "pathParameters": None,
            "multiValueQueryStringParameters": None,
            "stageVariables": None,
            "body": body,
            "isBase64Encoded": is_base64,
        }
        answer = app(event, None)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        return Answer(answer["statusCode"], headers, answer["body"].encode())

    return invoke


def test_a_base64_body_is_decoded(post: Callable[..., Answer]) -> None:
    order = json.dumps(seed(customer_name="Zoë 李"), ensure_ascii=False).encode()

    answer = post(base64.b64encode(order).decode(), is_base64=True)

    assert answer.status == 201
    assert answer.json["order"]["customer_name"] == "Zoë 李"


def test_base64_body_with_invalid_characters_is_rejected(post: Callable[..., Answer]) -> None:
    encoded = base64.b64encode(SEED_BYTES).decode()

    for broken in (
        encoded[:8] + "!" + encoded[8:],
        encoded + "#",
        encoded[:-1],
        encoded.replace("A", "\n", 1),
    ):
        assert post(broken, is_base64=True).slug == "malformed-request"


def test_text_body_is_read_without_decoding(post: Callable[..., Answer]) -> None:
    answer = post(json.dumps(seed(customer_name="Zoë 李"), ensure_ascii=False))

    assert answer.json["order"]["customer_name"] == "Zoë 李"


@pytest.mark.parametrize(
    "body",
    ["!", "garbage!!", "e30", "=", "%%%%", "Zoë", "\ud800", "", "/////w==", base64.b64encode(b"{").decode()],
    ids=short_id,
)
def test_a_garbled_base64_body_is_malformed(
    post: Callable[..., Answer], refused: CheckRefusal, body: str
) -> None:
    refused(post(body, is_base64=True), "malformed-request")


@pytest.mark.parametrize("body", [None, "", "\ud800", '{"a":"\ud800"}'], ids=short_id)
def test_non_unicode_text_body_is_malformed(
    post: Callable[..., Answer], refused: CheckRefusal, body: str | None
) -> None:
    refused(post(body), "malformed-request")


def test_base64_body_size_counts_decoded_bytes(post: Callable[..., Answer]) -> None:
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
        order_body()[:-1],
        order_body() + b"x",
        order_body() + order_body(),
        order_body() + b"\0",
        order_body().replace(b'"USD"', b"'USD'"),
        order_body().replace(b":2,", b":2,,"),
        order_body().replace(b"}]", b",}]"),
        b"/* order */" + order_body(),
        order_body(customer_phone='"a\0b"'),
        order_body(customer_phone='"a\tb"'),
        order_body(customer_phone='"a\nb"'),
        order_body(customer_phone='"\\x"'),
        order_body(customer_phone='"\\u12"'),
        order_body(customer_phone="True"),
        order_body(customer_phone="undefined"),
    ],
    ids=short_id,
)
def test_non_json_body_is_malformed(alice: Client, refused: CheckRefusal, body: bytes) -> None:
    refused(alice.place(raw=body), "malformed-request")


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + order_body(),
        order_body().decode().encode("utf-16"),
        order_body().decode().encode("utf-16-le"),
        order_body().decode().encode("utf-32"),
        order_body(customer_name='"Zoë"').decode().encode("latin-1"),
        order_body().replace(b"John", b"\xff"),
        order_body().replace(b"John", b"\xc0\x80"),
        order_body().replace(b"John", b"\xed\xa0\x80"),
        order_body().replace(b"John", b"\xf4\x90\x80\x80"),
        order_body().replace(b"customer_name", b"\xe2\x82"),
    ],
    ids=short_id,
)
def test_non_utf_8_body_is_malformed(alice: Client, refused: CheckRefusal, body: bytes) -> None:
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
def test_invalid_json_number_is_malformed(
    alice: Client, refused: CheckRefusal, number: str, member: str
) -> None:
    refused(alice.place(raw=order_body(**{member: number})), "malformed-request")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (order_body()[:-1] + b',"currency":"USD"}', "currency"),
        (order_body()[:-1] + b',"curr\\u0065ncy":"USD"}', "currency"),
        (order_body()[:-1] + b',"currency":null}', "currency"),
        (order_body({'product_sku":"B","product_sku': '"C"'}).replace(b'\\"', b'"'), "product_sku"),
        (order_body(unknown='{"a":{"b":1,"c":2,"b":1}}'), "b"),
        (order_body(unknown='[{"":1,"":1}]'), ""),
        (order_body(unknown='{"\\u0000":1,"\\u0000":1}'), "\0"),
        (order_body(unknown='{"\\ud800":1,"\\ud800":1}'), "?"),
        (b'{"tenant_id":"a","tenant_id":"b"}', "tenant_id"),
    ],
    ids=short_id,
)
def test_duplicate_json_member_is_named(alice: Client, refused: CheckRefusal, body: bytes, name: str) -> None:
    refused(alice.place(raw=body), "malformed-request", name)


def test_duplicate_member_among_50_000_is_found_quickly(alice: Client, refused: CheckRefusal) -> None:
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
        order_body(unknown="[" * 32 + "]" * 32),
        order_body(customer_name='[{"a":' * 16 + "1" + "}]" * 16),
        order_body({"quantity": "[" * 30 + "]" * 30})
        .replace(b"[" * 30, b"[" * 31)
        .replace(b"]" * 30, b"]" * 31),
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 500_000 + b"]" * 500_000,
        b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
        order_body(unknown="[" * 10_000 + "]" * 10_000),
    ],
    ids=short_id,
)
def test_nesting_beyond_32_levels_is_malformed(alice: Client, refused: CheckRefusal, body: bytes) -> None:
    refused(alice.place(raw=body), "malformed-request")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[" * 32 + b"]" * 32, "body"),
        (order_body(unknown="[" * 31 + "]" * 31), "unknown"),
        (order_body({"quantity": "[" * 29 + "]" * 29}), "items[0].quantity"),
    ],
    ids=short_id,
)
def test_nesting_of_32_levels_is_accepted(
    alice: Client, refused: CheckRefusal, body: bytes, field: str
) -> None:
    refused(alice.place(raw=body), "validation", field)


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
    ids=short_id,
)
def test_invalid_idempotency_key_is_rejected(alice: Client, refused: CheckRefusal, key: str) -> None:
    answer = alice.send("POST", "/orders", order_body(), {"Idempotency-Key": key})

    refused(answer, "malformed-request", "Idempotency-Key", absent=key if len(key) > 3 else PRIVATE_ADDRESS)


@pytest.mark.parametrize("key", ["k", "k" * 255, f'"{"k" * 255}"', "~!@#$%^&*()", '"k\\"\\\\"'], ids=short_id)
def test_longest_and_unusual_idempotency_keys_are_accepted(alice: Client, key: str) -> None:
    assert alice.place(key=key).status == 201


@pytest.mark.parametrize(
    ("method", "target", "body", "slug"),
    [
        ("POST", "/orders", b"{}", "validation"),
        ("POST", "/orders", b"{", "malformed-request"),
        ("GET", "/orders/x", b"", "not-found"),
        ("GET", "/orders?limit=0", b"", "malformed-request"),
    ],
)
def test_bad_requests_are_refused_without_database_settings(
    alice: Client, method: str, target: str, body: bytes, slug: str
) -> None:
    with api_on("not a URL"):
        assert alice.send(method, target, body=body).slug == slug
