"""Replaces API Gateway on every other host.

It finds the route, verifies the token where the route has an authorizer, builds API Gateway's event, calls
the app and returns what a host sends. A shim only translates its cloud's request and response.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from urllib.parse import parse_qs
from uuid import uuid4

from chalice.app import Response

from chalicelib.errors import MalformedRequest, Problem
from chalicelib.http.current_request import MAX_BODY_BYTES, Invocation
from chalicelib.http.middleware import Call, problem_response, respond
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.identity import tokens
from chalicelib.observability import logs
from chalicelib.observability.record import Record
from chalicelib.settings.environment import SettingsError, is_present
from chalicelib.settings.http import base_path
from chalicelib.settings.startup import check_settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Request:
    """What a client sent, the same on every cloud."""

    method: str
    target: str
    """Path and query as sent, percent-encoded."""
    headers: Mapping[str, str]
    body: bytes
    id: str = ""
    """The host's id of this request, never the client's; without one the gateway makes one."""
    deadline: float | None = None
    """When the host ends the request, in seconds of time.monotonic(); None where the host sets no limit."""


@dataclass(frozen=True)
class Answer:
    """The response to the client."""

    status: int
    headers: dict[str, str]
    body: bytes


class Gateway:
    """Calls the app as API Gateway would. Safe to share between threads.

    Raises SettingsError at once, not at the first request, when a variable is missing or wrong.
    """

    def __init__(self, app: ParallelChalice, host: str = "local") -> None:
        """`host` is this host's name in the log: `azure`, `gcp`, `oci`."""
        if is_present("AWS_LAMBDA_FUNCTION_NAME"):
            raise SettingsError(
                "AWS_LAMBDA_FUNCTION_NAME is set, which means: claims were verified. Unset it on this host"
            )
        check_settings()
        self._app = app
        self._base_path = base_path()
        self._host = host
        if host == "azure":
            logs.output.through_root = True
        if host == "gcp":
            logs.output.has_severity = True

    def handle(self, request: Request) -> Answer:
        """Never raises: every error becomes a problem in the contract's shape."""
        invocation = Invocation(host=self._host, deadline=request.deadline)
        request_id = _request_id(request.id)

        def call(record: Record) -> Response:
            return self._dispatch(request, invocation, record)

        return self._respond(call, invocation, request_id)

    def handle_read(self, method: str, read: Callable[[], Request], *errors: type[Exception]) -> Answer:
        """handle() for a host that raises one of `errors` from `read` when it cannot read the request."""
        try:
            request = read()
        except errors:
            return self.refuse(MalformedRequest(), method)
        return self.handle(request)

    def refuse(self, problem: Problem, method: str) -> Answer:
        """The answer to a request that the host could not read."""

        def refused(record: Record) -> Response:
            record.describe(method, "", None)
            return problem_response(problem, record)

        return self._respond(refused, Invocation(host=self._host), str(uuid4()))

    def _respond(self, call: Call, invocation: Invocation, request_id: str) -> Answer:
        response = respond(call, invocation, request_id, self._app.common_headers)
        body = response.body if isinstance(response.body, bytes) else response.body.encode()
        return Answer(response.status_code, cast(dict[str, str], response.headers), body)

    def _dispatch(self, request: Request, invocation: Invocation, record: Record) -> Response:
        path, _, query = request.target.partition("?")
        route, parameters = self._route(path)
        methods = self._app.routes.get(route, {})
        headers = {name.lower(): value for name, value in request.headers.items()}
        record.describe(request.method, route, headers.get("traceparent"))
        if request.method == "OPTIONS" and methods:
            return _preflight([*methods, "OPTIONS"])
        declared = methods.get(request.method)
        if declared and declared.authorizer:
            invocation.claims = tokens.claims(headers.get("authorization"))
        if not _is_whole(request.body, headers.get("content-length", "")):
            raise MalformedRequest("The body ended before its Content-Length.")
        event = {
            "requestContext": {
                "resourcePath": route,
                "httpMethod": request.method,
                "path": path,
                "requestId": record.request_id,
            },
            "headers": headers,
            "pathParameters": parameters,
            "multiValueQueryStringParameters": parse_qs(query, keep_blank_values=True) or None,
            "stageVariables": None,
            "body": request.body,
            "isBase64Encoded": False,
        }
        # The second argument, on Lambda its context, is trusted: a request cannot set it.
        answer = self._app(event, invocation)
        if _CONTROL.search("".join(answer["headers"].values())):
            raise ValueError("a response header holds a control character")
        return Response(answer["body"].encode(), answer["headers"], answer["statusCode"])

    def _route(self, path: str) -> tuple[str, dict[str, str]]:
        """The template and its parameters, still percent-encoded; an empty template for an unknown path."""
        segments = path.removeprefix(self._base_path).split("/")
        if not path.startswith(f"{self._base_path}/"):
            return "", {}
        for template in sorted(self._app.routes):
            parts = template.split("/")
            pairs = list(zip(parts, segments, strict=False))
            if len(parts) == len(segments) and all(
                part == value or (part.startswith("{") and value) for part, value in pairs
            ):
                return template, {part[1:-1]: value for part, value in pairs if part.startswith("{")}
        return "", {}


def deadline(timestamp: str) -> float | None:
    """A host's deadline, RFC 3339, in seconds of time.monotonic(); None if it is malformed."""
    try:
        return time.monotonic() + datetime.fromisoformat(timestamp).timestamp() - time.time()
    except ValueError:
        return None


def _request_id(host_id: object) -> str:
    """The host's id where it is a safe header value; else a new one."""
    return host_id if isinstance(host_id, str) and _REQUEST_ID.fullmatch(host_id) else str(uuid4())


def _is_whole(body: bytes, declared_length: str) -> bool:
    """Some hosts' servers do not notice that a client disconnected mid-body; some truncate a large body."""
    return not declared_length.isdecimal() or len(body) >= min(int(declared_length), MAX_BODY_BYTES)


def _preflight(methods: list[str]) -> Response:
    """As Chalice answers a preflight on API Gateway: all methods of the path, for every request."""
    return Response("", {"Access-Control-Allow-Methods": ",".join(methods)})
