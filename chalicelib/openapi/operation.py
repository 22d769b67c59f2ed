"""One route of the API, as the OpenAPI document describes it. Each domain's folder declares its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chalicelib.errors import Internal, MissingTenant, Problem, RateLimited, Unauthorized, Unavailable
from chalicelib.openapi import problems
from chalicelib.openapi.headers import RATE_LIMIT, REQUEST_ID
from chalicelib.openapi.response import Content, Json, Response, reference


@dataclass(frozen=True, eq=False)
class Tag:
    name: str
    description: str


@dataclass(frozen=True, eq=False)
class Parameter:
    """A path's parameter is required, every other one is optional."""

    name: str
    location: Literal["header", "path", "query"]
    schema: Json
    description: str | None = None
    example: object = None

    def render(self) -> Json:
        optional = {
            "description": self.description,
            "required": self.location == "path" or None,
            "schema": self.schema,
            "example": self.example,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"name": self.name, "in": self.location, **given}


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """A GET is served for HEAD too.

    `problems` are this route's own: those of all routes, and of all that need a token, are added.
    """

    path: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    operation_id: str
    tag: Tag
    summary: str
    description: str | None = None
    needs_token: bool = True
    """A caller with a token is subject to the rate limit."""
    parameters: Sequence[Parameter] = ()
    request: Content | None = None
    responses: Sequence[Response]
    problems: Sequence[Problem] = ()

    def render(self) -> Json:
        """The path item's entries by method."""
        if self.method != "GET":
            return {self.method.lower(): self._render()}
        head = replace(
            self,
            method="HEAD",
            operation_id=f"{self.operation_id}Head",
            summary=f"{self.summary} (headers only)",
        )
        return {"get": self._render(), "head": head._render()}

    def all_responses(self) -> Iterator[Response]:
        """With the problems and headers that are not this route's own; without bodies for HEAD."""
        for response in [*self.responses, *problems.responses(self._all_problems())]:
            headers = [REQUEST_ID, *response.headers]
            if self.needs_token and response.status not in (401, 403):
                headers += RATE_LIMIT
            if self.method == "HEAD":
                yield replace(response, headers=headers, content=None, links=())
            else:
                yield replace(response, headers=headers)

    def _all_problems(self) -> Iterator[Problem]:
        yield from (Internal(), RateLimited())
        if self.needs_token:
            yield from (Unauthorized(), MissingTenant(), Unavailable())
        yield from self.problems

    def _render(self) -> Json:
        entry: dict[str, object] = {
            "operationId": self.operation_id,
            "tags": [self.tag.name],
            "summary": self.summary,
        }
        if self.description:
            entry["description"] = self.description
        if not self.needs_token:
            entry["security"] = []
        trace = reference("parameters", TRACEPARENT.name)
        if self.parameters:
            entry["parameters"] = [*(parameter.render() for parameter in self.parameters), trace]
        if self.request:
            entry["requestBody"] = {"required": True, "content": self.request.render()}
        entry["responses"] = {str(response.status): response.render() for response in self.all_responses()}
        # Its place in the JSON differs then: `make conform` compares the document's bytes.
        entry.setdefault("parameters", [trace])
        return entry


TRACEPARENT = Parameter(
    "traceparent",
    "header",
    {"type": "string"},
    "W3C Trace Context: the trace goes on to the database and shows in the log. A malformed one is ignored.",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
"""A header of every request."""
