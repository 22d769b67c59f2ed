"""Downloads a JSON Web Key Set (RFC 7517) and keeps the keys that can verify RS256 signatures."""

import json
import re
import time
import urllib.request
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any

from chalicelib.observability import record as telemetry

Key = dict[str, Any]

MAX_RESPONSE_BYTES = 512 * 1024
"""Real key sets have some 30 KiB at most."""
MIN_KEY_BITS = 2048
"""Of an RSA key (RFC 7518, 3.3)."""


def download(url: str, timeout: float) -> Mapping[str, Key]:
    """The usable keys by key id; the first of several with one id.

    Raises when there is none, and when the download takes longer than `timeout` seconds.
    """
    keys: dict[str, Key] = {}
    for key in json.loads(_get(url, timeout))["keys"]:
        if _is_usable(key):
            keys.setdefault(key["kid"], {**key, "alg": "RS256"})
    if not keys:
        raise ValueError("no RS256 key in the answer")
    return keys


def public_part(url: str) -> str:
    """The URL without what may be secret: user name, password and query."""
    return re.split("[?#]", re.sub(r"//[^/]*@", "//", url))[0]


def _is_usable(key: Any) -> bool:
    """Whether this member of a key set has an id and is for RS256 (RFC 7517, 5: others are ignored)."""
    return (
        isinstance(key, dict)
        and isinstance(key.get("kid"), str)
        and key.get("kty") == "RSA"
        and key.get("alg", "RS256") == "RS256"
        and key.get("use", "sig") == "sig"
        and _bit_length(key.get("n")) >= MIN_KEY_BITS
    )


def _bit_length(modulus: Any) -> int:
    try:
        return int.from_bytes(urlsafe_b64decode(modulus + "==="), "big").bit_length()
    except (TypeError, ValueError):
        return 0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from the configured address only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(url: str, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    # Firewalls in front of issuers answer urllib's own User-Agent with 403 (jpadilla/pyjwt#1121).
    headers = {"User-Agent": "order-api", **telemetry.outgoing_headers()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (settings/tokens.py)
    opener = urllib.request.build_opener(_NoRedirects)
    body = b""
    with opener.open(request, timeout=timeout) as response:
        while chunk := response.read1(64 * 1024):
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise ValueError(f"more than {MAX_RESPONSE_BYTES} bytes")
            # A complete body is accepted after the deadline too: the process may have been frozen meanwhile.
            if response.length != 0 and time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {timeout} seconds")
    return body
