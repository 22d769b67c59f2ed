"""Chalice for hosts with threads, and with an answer to every method of a known path."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from chalice.app import Chalice, CORSConfig, Request, Response

from chalicelib.errors import MethodNotAllowed, NotFound
from chalicelib.http import current_request
from chalicelib.http.current_request import Invocation

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
View = Callable[..., Response]


class ParallelChalice(Chalice):
    """Chalice, but each thread and each task has its own `current_request` and `lambda_context`.

    Chalice keeps both in attributes of the one app object, where a request on another thread would read the
    wrong claims. Context variables instead of a lock: requests must run in parallel.
    """

    def __init__(self, app_name: str, cors: CORSConfig | None = None) -> None:
        super().__init__(app_name=app_name, configure_logs=False)
        self.api.binary_types = []
        self.api.cors = cors or CORSConfig()
        self.common_headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **self.api.cors.get_access_control_headers(),
        }
        """Headers of every answer, unless the answer has its own."""
        self._refused: dict[str, list[str]] = {}

    @property
    def current_request(self) -> Request | None:
        return current_request.invocation().request

    @current_request.setter
    def current_request(self, request: Request | None) -> None:
        current_request.invocation().request = request

    @property  # type: ignore[override] # Chalice declares Lambda's class
    def lambda_context(self) -> Invocation:
        return current_request.invocation()

    @lambda_context.setter
    def lambda_context(self, context: Any) -> None:
        current_request.current.set(Invocation.from_context(context))

    def route(
        self, path: str, *, exists: Callable[[], bool] | None = None, **options: Any
    ) -> Callable[[View], View]:
        """Chalice's route, and a 405 for each of METHODS that no route of this path declares.

        API Gateway forwards only declared methods, so those that get a 405 are declared too. `exists`: the
        path answers 404 to all of METHODS while this returns False. No content types: json_body() checks the
        media type after the token, Chalice would check it before.
        """
        options = {"content_types": [], **options}
        register = super().route(path, **options)

        def registered(view: View) -> View:
            for method in self._refused.pop(path, []):
                del self.routes[path][method]
            register(_hidden_unless(exists, view))
            self._refuse_other_methods(path, exists)
            return view

        return registered

    def allowed_methods(self, path: str) -> list[str]:
        """Those of METHODS that a route of this path declares."""
        refused = self._refused[path]
        return [method for method in METHODS if method in self.routes[path] and method not in refused]

    def _refuse_other_methods(self, path: str, exists: Callable[[], bool] | None) -> None:
        def refuse_method(**_path: str) -> Response:
            """Another method of a known path: 405."""
            raise MethodNotAllowed(self.allowed_methods(path))

        refused = [method for method in METHODS if method not in self.routes[path]]
        super().route(path, methods=refused, content_types=[])(_hidden_unless(exists, refuse_method))
        self._refused[path] = refused


def _hidden_unless(exists: Callable[[], bool] | None, view: View) -> View:
    if exists is None:
        return view

    @wraps(view)
    def hidden(**path: str) -> Response:
        if not exists():
            raise NotFound
        return view(**path)

    return hidden
