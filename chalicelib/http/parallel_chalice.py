"""A Chalice whose requests can run side by side."""

from contextvars import ContextVar
from typing import Any

from chalice.app import Chalice, Request

_request: ContextVar[Request | None] = ContextVar("request", default=None)
_lambda_context: ContextVar[Any] = ContextVar("lambda_context", default=None)


class ParallelChalice(Chalice):
    """Chalice, but each thread and each task has its own `current_request`.

    Chalice keeps the current request in one attribute of the one app object, so that on a host
    with threads a request reads the claims of another. No lock: requests must run in parallel.
    """

    @property
    def current_request(self) -> Request | None:
        return _request.get()

    @current_request.setter
    def current_request(self, request: Request | None) -> None:
        _request.set(request)

    @property
    def lambda_context(self) -> Any:
        return _lambda_context.get()

    @lambda_context.setter
    def lambda_context(self, context: Any) -> None:
        _lambda_context.set(context)
