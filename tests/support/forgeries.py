"""Tokens that an issuer's own key signed, written so that two readers may read them differently."""

import json
from collections.abc import Iterator

from tests.support.issuer import Json, SigningKey

TENANT_CLAIMS = ("tenant_id", "tid", "custom:tenant_id")


def oddly_written(key: SigningKey, claims: Json, victim: str) -> Iterator[tuple[str, str]]:
    """What is odd about each, and the token. RFC 7515, 4, RFC 7519, 4, and RFC 8725, 3.7."""
    header = json.dumps({"typ": "JWT", "alg": "RS256", "kid": key.kid}).encode()
    payload = json.dumps(claims).encode()

    def with_more(member: bytes) -> str:
        return key.signed(header, payload[:-1] + b"," + member + b"}")

    for name, value in [
        ("alg", "RS256"),
        ("alg", "none"),
        ("kid", key.kid),
        ("kid", "other"),
        ("typ", "JWT"),
    ]:
        again = members({name: value})
        yield f"{name} twice, the last one {value}", key.signed(header[:-1] + b"," + again + b"}", payload)
        yield f"{name} twice, the first one {value}", key.signed(b"{" + again + b"," + header[1:], payload)
    for name in ("iss", "aud", "sub", "exp", "iat"):
        yield f"{name} twice", with_more(members({name: claims[name]}))
    yield "every claim twice", with_more(members({**claims, **dict.fromkeys(TENANT_CLAIMS, victim)}))
    yield "a name twice, deep inside", with_more(b'"a":[{"b":{"c":1,"c":2}}]')
    yield "a name twice, once escaped", with_more(b'"\\u0073ub":"victim"')
    yield "a byte that is no UTF-8", with_more(b'"a":"\xff"')
    yield "a UTF-16 surrogate in UTF-8", with_more(b'"a":"\xed\xa0\x80"')
    yield "longer than any token", with_more(b'"a":"' + b"x" * 16_384 + b'"')
    for coding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        yield f"a header in {coding}", key.signed(header.decode().encode(coding), payload)
        yield f"claims in {coding}", key.signed(header, payload.decode().encode(coding))
    yield "something behind the claims", key.signed(header, payload + b"{}")
    nested = key.signed(header, payload).encode()
    yield "a token inside a token", key.signed(header[:-1] + b',"cty":"JWT"}', nested)
    yield "nothing inside", key.signed(header, b"")


def members(value: Json) -> bytes:
    """An object's JSON without its braces."""
    return json.dumps(value).encode()[1:-1]
