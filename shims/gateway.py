"""The part that API Gateway plays on AWS, for every other host.

It finds the route, checks the token where the route has an authorizer, builds API Gateway's event, calls the
app and hands back what a host sends. A shim only translates its cloud's request and response.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qs
from uuid import uuid4

from chalice.app import Chalice

from app import COMMON_HEADERS, LARGEST_BODY
from chalicelib.caller import Invocation, Verified
from chalicelib.errors import Internal, MalformedRequest, Problem
from chalicelib.identity import tokens
from chalicelib.observability import logs
from chalicelib.observability import record as telemetry
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.http import base_path
from chalicelib.settings.startup import check_settings

_log = logging.getLogger("order-api")
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Request:
    """What a client sent, in no cloud's words."""

    method: str
    target: str
    """Path and query as they came over the wire, percent-encoded."""
    headers: Mapping[str, str]
    body: bytes
    id: str = ""
    """The host's own id of this request, never the client's; one is made where the host has none."""
    ends_at: float | None = None
    """When the host will end the request, by time.monotonic(); None where it does not say."""


@dataclass(frozen=True)
class Answer:
    """What the client gets."""

    status: int
    headers: dict[str, str]
    body: bytes


class Gateway:
    """Calls the app as API Gateway would. Safe to share between threads.

    Raises SettingsError at once, not at the first request, when a variable is missing or wrong.
    """

    def __init__(self, app: Chalice, host: str = "local") -> None:
        """`host` is what the log calls this one: `azure`, `gcp`, `oci`."""
        if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            raise SettingsError(
                "AWS_LAMBDA_FUNCTION_NAME is set, which means: claims were verified. Unset it on this host"
            )
        check_settings()
        self._app = app
        self._base_path = base_path()
        self._host = host
        if host == "azure":
            logs.through_root()
        if host == "gcp":
            logs.severity_too = True

    def answer(self, request: Request) -> Answer:
        """Never raises: whatever goes wrong is a problem of the contract's shape."""
        request_id = request.id if _REQUEST_ID.fullmatch(str(request.id)) else str(uuid4())
        record = telemetry.begin(request_id, self._host)
        answer = self._answered(request, record)
        telemetry.end(record, answer.status)
        return answer

    def exchange(self, method: str, incoming: Callable[[], Request], *broken: type[Exception]) -> Answer:
        """The answer to a request that the host raises one of these on, when its body cannot be read."""
        try:
            request = incoming()
        except broken:
            return self.refuse(MalformedRequest(), method)
        return self.answer(request)

    def refuse(self, problem: Problem, method: str) -> Answer:
        """The answer to a request that cannot be handed over at all."""
        record = telemetry.begin(str(uuid4()), self._host)
        record.describe(method, "", None)
        answer = _refusal(problem, method, record)
        telemetry.end(record, answer.status)
        return answer

    def _answered(self, request: Request, record: telemetry.Record) -> Answer:
        try:
            answer = self._answer(request, record)
            if _CONTROL.search("".join(answer.headers.values())):
                raise ValueError("a response header holds a control character")
        except Problem as problem:
            return _refusal(problem, request.method, record)
        except Exception:
            _log.exception("unforeseen error")
            return _refusal(Internal(), request.method, record)
        return answer

    def _answer(self, request: Request, record: telemetry.Record) -> Answer:
        path, _, query = request.target.partition("?")
        route, parameters = self._route(path)
        methods = self._app.routes.get(route, {})
        headers = {name.lower(): value for name, value in request.headers.items()}
        record.describe(request.method, route, headers.get("traceparent"))
        if request.method == "OPTIONS" and methods:
            return _preflight([*methods, "OPTIONS"], record.request_id)
        declared = methods.get(request.method)
        invocation = Invocation(ends_at=request.ends_at)
        if declared and declared.authorizer:
            invocation = Verified(tokens.claims(headers.get("authorization")), ends_at=request.ends_at)
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
        # On Lambda the second argument is its context; no request can put anything there.
        answer = self._app(event, invocation)
        return Answer(answer["statusCode"], answer["headers"], answer["body"].encode())

    def _route(self, path: str) -> tuple[str, dict[str, str]]:
        """The template and its parameters, still percent-encoded; no template for an unknown path."""
        given = path.removeprefix(self._base_path).split("/")
        if not path.startswith(f"{self._base_path}/"):
            return "", {}
        for template in sorted(self._app.routes):
            parts = template.split("/")
            pairs = list(zip(parts, given, strict=False))
            if len(parts) == len(given) and all(
                part == value or (part.startswith("{") and value) for part, value in pairs
            ):
                return template, {part[1:-1]: value for part, value in pairs if part.startswith("{")}
        return "", {}


def ends_at(deadline: str) -> float | None:
    """A host's deadline, RFC 3339, by time.monotonic(); None for what is none."""
    try:
        return time.monotonic() + datetime.fromisoformat(deadline).timestamp() - time.time()
    except ValueError:
        return None


def _refusal(problem: Problem, method: str, record: telemetry.Record) -> Answer:
    """A problem that never reached the app, as the app would have answered it."""
    response = record.refuse(problem)
    own = {name: str(value) for name, value in response.headers.items()}
    return Answer(
        response.status_code,
        {**COMMON_HEADERS, **own, "X-Request-Id": record.request_id},
        b"" if method == "HEAD" else response.body.encode(),
    )


def _is_whole(body: bytes, declared_length: str) -> bool:
    """Not every host's server notices a client that went away half-way; a host may cut what is too large."""
    return not declared_length.isdecimal() or len(body) >= min(int(declared_length), LARGEST_BODY)


def _preflight(methods: list[str], request_id: str) -> Answer:
    """What Chalice has API Gateway answer: CORS for the path, whatever the browser asks for."""
    allowed = {"Access-Control-Allow-Methods": ",".join(methods)}
    return Answer(200, {**COMMON_HEADERS, **allowed, "X-Request-Id": request_id}, b"")
