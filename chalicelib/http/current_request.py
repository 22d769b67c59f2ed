"""The request that this thread or task answers: what the client sent, and how the host called the app."""

import time
from base64 import b64decode
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from chalice.app import Request

from chalicelib.caller import Caller
from chalicelib.errors import MalformedRequest, PayloadTooLarge, UnsupportedMediaType
from chalicelib.observability.record import Record
from chalicelib.settings.aws_lambda import on_lambda

MAX_BODY_BYTES = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Invocation:
    """How the app was called, and the state of this request. A Python object: no request can make one.

    A shim's gateway and SnapStart's warm-up pass one in place of Lambda's context.
    """

    host: str = "local"
    """The host's name in the log: `aws`, `azure`, `gcp`, `oci`, `local`."""
    deadline: float | None = None
    """When the host ends the request, in seconds of time.monotonic(); None where the host sets no limit."""
    claims: Mapping[str, Any] | None = None
    """Those of a token that the gateway has verified."""
    record: Record | None = None
    """Set by the outermost entry, which alone opens and closes it."""
    request: Request | None = None
    """Chalice's object, set before the route is called."""
    counts: bool = True
    """Whether RATE_LIMIT applies; it does not during a warm-up."""
    caller: Caller | None = None
    """Set once the request is admitted."""
    rate_headers: Mapping[str, str] = field(default_factory=dict)
    """RateLimit header fields for the answer."""

    @classmethod
    def from_context(cls, context: Any) -> "Invocation":
        """`context` is the second argument of the app: an Invocation, Lambda's context, or None."""
        if isinstance(context, cls):
            return context
        if not on_lambda():
            return cls()
        if context is None:
            return cls(host="aws")
        return cls(host="aws", deadline=time.monotonic() + context.get_remaining_time_in_millis() / 1000)


current: ContextVar[Invocation] = ContextVar("invocation")
"""Set by ParallelChalice."""


def invocation() -> Invocation:
    return current.get()


def request() -> Request:
    """Raises RuntimeError before there is one."""
    chalice_request = invocation().request
    if chalice_request is None:
        raise RuntimeError("there is no current request")
    return chalice_request


def deadline() -> float | None:
    """When the host ends the request, in seconds of time.monotonic(); None where the host sets no limit."""
    return invocation().deadline


def caller() -> Caller:
    """The caller of an admitted request. Raises RuntimeError before it is admitted."""
    admitted = invocation().caller
    if admitted is None:
        raise RuntimeError("the request is not admitted yet")
    return admitted


def header(name: str) -> str | None:
    value: str | None = request().headers.get(name)
    return value


def has_current_version(etag: str) -> bool:
    """Whether If-None-Match has this ETag (RFC 9110, section 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (header("if-none-match") or "").split(",")]
    return etag in tags or "*" in tags


def json_body() -> bytes:
    """The body's bytes. Raises MalformedRequest on bad base64, PayloadTooLarge or UnsupportedMediaType."""
    event = request().to_original_event()
    body: bytes | str = event["body"] or b""
    try:
        if event.get("isBase64Encoded"):
            body = b64decode(body, validate=True)
        elif isinstance(body, str):
            body = body.encode()
    except ValueError:
        raise MalformedRequest("The body is not valid base64 or not valid Unicode.") from None
    if len(body) > MAX_BODY_BYTES:
        raise PayloadTooLarge
    media_type = (header("content-type") or "application/json").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType
    return body
