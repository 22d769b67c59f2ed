"""Problem details (RFC 9457) in the document: one response a status, one example a problem."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from pydantic import BaseModel, Field

from chalicelib.errors import Problem
from chalicelib.openapi.headers import PROBLEM_HEADERS
from chalicelib.openapi.response import Content, Json, Response

_REQUEST_ID = "9b2f1c9e-1f0a-4c58-9d51-3a8f4a3f7c11"


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457); `type` tells programs, `detail` and `errors` tell people."""

    type: str = Field(pattern="^urn:order-api:problem:[a-z-]+$")
    title: str
    status: int
    detail: str
    request_id: str = Field(description="The X-Request-Id of the answer")
    errors: list[FieldError] = Field(description="Each wrong field, parameter or header; often empty")


def responses(problems: Iterable[Problem]) -> list[Response]:
    """By ascending status; problems of one status share a response."""
    by_status = groupby(sorted(problems, key=attrgetter("status")), key=attrgetter("status"))
    return [_response(status, [*same_status]) for status, same_status in by_status]


def _response(status: int, problems: Sequence[Problem]) -> Response:
    return Response(
        status,
        " ".join(problem.__doc__ or problem.title for problem in problems),
        headers=[PROBLEM_HEADERS[name] for name in problems[0].headers],
        content=Content(
            ProblemDetails,
            examples={problem.slug: _example(problem) for problem in problems},
            media_type="application/problem+json",
        ),
    )


def _example(problem: Problem) -> Json:
    return {"summary": problem.title, "value": json.loads(problem.response(_REQUEST_ID).body)}
