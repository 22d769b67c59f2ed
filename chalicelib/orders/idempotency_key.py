"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header)."""

import re

from chalicelib.errors import MalformedRequest

_BARE = re.compile(r"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')


def key(header: str | None) -> str | None:
    """The key in the header's value, bare or as a quoted string (RFC 8941): `abc` and `"abc"` are one.

    Raises MalformedRequest for anything but 1..255 visible ASCII characters.
    """
    if header is None:
        return None
    if not header.startswith('"') and _BARE.fullmatch(header):
        return header
    if quoted := _QUOTED.fullmatch(header):
        return re.sub(r'\\(["\\])', r"\1", quoted[1])
    raise MalformedRequest(
        "A header could not be read.",
        [("Idempotency-Key", "must be 1 to 255 visible ASCII characters, bare or in double quotes")],
    )
