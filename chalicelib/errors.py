"""Every error a client can get: what happened, and its status (RFC 9457 problem details)."""

import json
from collections.abc import Mapping, Sequence

from chalice.app import ChaliceUnhandledError, Response

FieldErrors = Sequence[tuple[str, str]]
"""(field, what is wrong and what to do) pairs."""


class Problem(ChaliceUnhandledError):
    """An answer other than success.

    Chalice lets only `ChaliceUnhandledError` through to the middleware, which renders it.
    """

    status = 500
    slug = "internal"
    title = "Internal error"
    detail = "Something went wrong on our side. Quote the request_id when you report it."
    headers: Mapping[str, str] = {}

    def __init__(self, detail: str | None = None, errors: FieldErrors = ()) -> None:
        super().__init__(detail or self.detail)
        self.detail = detail or self.detail
        self.errors = errors

    def response(self, request_id: str) -> Response:
        """The problem as `application/problem+json`, naming the request it answers."""
        body = {
            "type": f"urn:order-api:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
            "errors": [{"field": field, "message": message} for field, message in self.errors],
        }
        headers: dict[str, str | list[str]] = {"Content-Type": "application/problem+json", **self.headers}
        return Response(json.dumps(body, separators=(",", ":")), headers, self.status)


class Internal(Problem):
    """Anything unforeseen; the log has the cause under the request's id."""


class MalformedRequest(Problem):
    """The body, the query or a header is not of its grammar."""

    status, slug, title = 400, "malformed-request", "Malformed request"
    detail = "The request could not be read."


class Unauthorized(Problem):
    """No token, or one that failed verification."""

    status, slug, title = 401, "unauthorized", "Unauthorized"
    detail = "Send a valid token: Authorization: Bearer <token>"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class MissingTenant(Problem):
    """A good token that names no tenant."""

    status, slug, title = 403, "missing-tenant", "Missing tenant"
    detail = "Missing tenant_id in claims"


class NotFound(Problem):
    """No such path or order, or another tenant's order: they all look the same."""

    status, slug, title = 404, "not-found", "Not found"
    detail = "There is nothing here under this address."


class MethodNotAllowed(Problem):
    """The path is right, the method is not; `Allow` lists those that are."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"Use one of: {', '.join(allowed)}")
        self.headers = {"Allow": ", ".join(allowed)}


class IdempotencyInFlight(Problem):
    """Another request with this Idempotency-Key has not finished yet."""

    status, slug, title = 409, "idempotency-in-flight", "Request in flight"
    detail = "A request with this Idempotency-Key is still running. Repeat yours in a moment."
    headers: Mapping[str, str] = {"Retry-After": "1"}


class PayloadTooLarge(Problem):
    """The body is over the limit."""

    status, slug, title = 413, "payload-too-large", "Payload too large"
    detail = "The body may have 1 MiB at most."


class UnsupportedMediaType(Problem):
    """The body is not declared as JSON."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"
    detail = "Send JSON: Content-Type: application/json"


class Invalid(Problem):
    """Well-formed, but not an order: `errors` names each field."""

    status, slug, title = 422, "validation", "Validation failed"
    detail = "The order was not placed: correct the fields in errors."


class IdempotencyMismatch(Problem):
    """This Idempotency-Key already placed another order."""

    status, slug, title = 422, "idempotency-mismatch", "Idempotency-Key used before"
    detail = "This Idempotency-Key belongs to another order. Send that order again, or use a new key."


class RateLimited(Problem):
    """More requests than RATE_LIMIT, or a gateway in front, lets through; a gateway answers this itself."""

    status, slug, title = 429, "rate-limited", "Too many requests"
    detail = "Too many requests. Try again shortly."
    headers: Mapping[str, str] = {"Retry-After": "1"}

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.headers = headers or self.headers


class Unavailable(Problem):
    """The database cannot answer now; the same request may succeed later."""

    status, slug, title = 503, "unavailable", "Service unavailable"
    detail = "The database cannot answer at the moment. Try again shortly."
    headers: Mapping[str, str] = {"Retry-After": "1"}
