"""The response headers that do not belong to one domain."""

from chalicelib.openapi.response import Header

REQUEST_ID = Header(
    "X-Request-Id",
    "Names this request in logs and reports",
    {"type": "string", "minLength": 1},
    always=True,
)
RETRY_AFTER = Header(
    "Retry-After",
    "Seconds to wait before the next try",
    {"type": "integer", "minimum": 1},
    always=True,
)
AUTHENTICATE = Header(
    "WWW-Authenticate",
    "How to send the token",
    {"type": "string", "enum": ["Bearer"]},
    always=True,
)
RATE_LIMIT = (
    Header(
        "RateLimit",
        "With a limit: requests that are left (r), and seconds until there are more (t)",
        {"type": "string", "examples": ['"tenant";r=99;t=1']},
    ),
    Header(
        "RateLimit-Policy",
        "With a limit: requests of a tenant (q) in so many seconds (w)",
        {"type": "string", "examples": ['"tenant";q=100;w=1']},
    ),
)
PROBLEM_HEADERS = {header.name: header for header in (RETRY_AFTER, AUTHENTICATE)}
"""Headers that a problem sets, by their names."""
