"""Tokens signed by the issuer's key whose JSON or encoding two parsers may read differently."""

import json
from collections.abc import Iterator

from tests.support.issuer import Json, SigningKey

TENANT_CLAIMS = ("tenant_id", "tid", "custom:tenant_id")


def ambiguous_tokens(key: SigningKey, claims: Json, victim: str) -> Iterator[tuple[str, str]]:
    """Pairs of a description and a token. RFC 7515, 4, RFC 7519, 4, and RFC 8725, 3.7."""
    header = json.dumps({"typ": "JWT", "alg": "RS256", "kid": key.kid}).encode()
    payload = json.dumps(claims).encode()

    def with_member(member: bytes) -> str:
        return key.signed(header, payload[:-1] + b"," + member + b"}")

    for name, value in [
        ("alg", "RS256"),
        ("alg", "none"),
        ("kid", key.kid),
        ("kid", "other"),
        ("typ", "JWT"),
    ]:
        repeated = members({name: value})
        yield f"{name} twice, the last one {value}", key.signed(header[:-1] + b"," + repeated + b"}", payload)
        yield f"{name} twice, the first one {value}", key.signed(b"{" + repeated + b"," + header[1:], payload)
    for name in ("iss", "aud", "sub", "exp", "iat"):
        yield f"{name} twice", with_member(members({name: claims[name]}))
    yield "every claim twice", with_member(members({**claims, **dict.fromkeys(TENANT_CLAIMS, victim)}))
    yield "a name twice, deep inside", with_member(b'"a":[{"b":{"c":1,"c":2}}]')
    yield "a name twice, once escaped", with_member(b'"\\u0073ub":"victim"')
    yield "a byte that is no UTF-8", with_member(b'"a":"\xff"')
    yield "a UTF-16 surrogate in UTF-8", with_member(b'"a":"\xed\xa0\x80"')
    yield "longer than any token", with_member(b'"a":"' + b"x" * 16_384 + b'"')
    for coding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        yield f"a header in {coding}", key.signed(header.decode().encode(coding), payload)
        yield f"claims in {coding}", key.signed(header, payload.decode().encode(coding))
    yield "something behind the claims", key.signed(header, payload + b"{}")
    nested = key.signed(header, payload).encode()
    yield "a token inside a token", key.signed(header[:-1] + b',"cty":"JWT"}', nested)
    yield "nothing inside", key.signed(header, b"")


def members(value: Json) -> bytes:
    """An object's JSON without the braces."""
    return json.dumps(value).encode()[1:-1]
