"""Turns a call into a response: problems, headers, the log line. For the app and for the shims' gateway."""

import logging
from collections.abc import Callable, Mapping
from uuid import uuid4

from chalice.app import Request, Response

from chalicelib.errors import Internal, MethodNotAllowed, NotFound, Problem
from chalicelib.http import current_request
from chalicelib.http.current_request import Invocation
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.observability import request_log
from chalicelib.observability.record import Record

Call = Callable[[Record], Response]
_log = logging.getLogger("order-api")


def respond(
    call: Call, invocation: Invocation, request_id: str, common_headers: Mapping[str, str]
) -> Response:
    """The complete answer to a request, and its log line. Only the outermost entry calls this. Never raises.

    `call` gets the request's record, describes the request in it, and returns or raises a Problem.
    """
    record = invocation.record = request_log.open_record(request_id, invocation.host)
    response = render(call, record)
    response.headers = {
        **common_headers,
        **invocation.rate_headers,
        **response.headers,
        "X-Request-Id": request_id,
    }
    if record.method == "HEAD":
        response.body = ""
    request_log.close_record(record, response.status_code)
    return response


def render(call: Call, record: Record) -> Response:
    """The call's response; a Problem as problem+json; any other exception as a logged 500."""
    try:
        return call(record)
    except Problem as problem:
        return problem_response(problem, record)  # here: a variable outside would keep its frames in a cycle
    except Exception:
        _log.exception("unforeseen error")
        return problem_response(Internal(), record)


def problem_response(problem: Problem, record: Record) -> Response:
    """The problem as problem+json, and its slug in the request's log line."""
    record.problem = problem.slug
    return problem.response(record.request_id)


class Middleware:
    """Chalice's http middleware. The outermost entry on Lambda and `chalice local`, else behind a gateway."""

    def __init__(self, app: ParallelChalice) -> None:
        self._app = app

    def __call__(self, request: Request | None, get_response: Callable[[Request], Response]) -> Response:
        invocation = current_request.invocation()
        invocation.request = request  # `chalice local` puts its own current_request over ParallelChalice's
        if request is not None:
            request.lambda_context = None  # else it and the invocation keep each other in memory
        if invocation.record is not None:
            return render(lambda _: self._dispatch(request, get_response), invocation.record)

        def call(record: Record) -> Response:
            if request is not None:
                record.describe(request.method, request.path, _traceparent(request))
            return self._dispatch(request, get_response)

        request_id = (request and request.context.get("requestId")) or str(uuid4())
        return respond(call, invocation, request_id, self._app.common_headers)

    def _dispatch(self, request: Request | None, get_response: Callable[[Request], Response]) -> Response:
        if request is None or request.path not in self._app.routes or _has_trailing_slash(request):
            raise NotFound
        response = get_response(request)
        if response.status_code == 405:  # a method outside METHODS: Chalice's own answer
            raise MethodNotAllowed(self._app.allowed_methods(request.path))
        if response.status_code >= 500:  # a route raised no Problem: Chalice has logged what it raised
            raise Internal
        return response


def _traceparent(request: Request) -> str | None:
    """The header; None if there are several, which name no trace (API Gateway's `headers` has the last)."""
    header: str | None = request.headers.get("traceparent")
    if header:
        all_headers = request.to_original_event().get("multiValueHeaders") or {}
        if sum(len(values) for name, values in all_headers.items() if name.lower() == "traceparent") > 1:
            return None
    return header


def _has_trailing_slash(request: Request) -> bool:
    """API Gateway routes `/orders/` to `/orders` too; the event's path is what the client sent."""
    return str(request.to_original_event().get("path", "")).endswith("/")
