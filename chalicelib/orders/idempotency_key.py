"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header)."""

import re

from chalicelib.errors import MalformedRequest

_BARE = re.compile(r"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')


def from_header(value: str | None) -> str | None:
    """The key, bare or as a quoted string (RFC 8941): `abc` and `"abc"` are the same key.

    Raises MalformedRequest for anything but 1 to 255 visible ASCII characters.
    """
    if value is None:
        return None
    if not value.startswith('"') and _BARE.fullmatch(value):
        return value
    if quoted := _QUOTED.fullmatch(value):
        return re.sub(r'\\(["\\])', r"\1", quoted[1])
    raise MalformedRequest(
        "A header could not be read.",
        [("Idempotency-Key", "must be 1 to 255 visible ASCII characters, bare or in double quotes")],
    )
