"""Every method of a known path has a route, in whatever order routes are declared."""

from collections.abc import Callable

import pytest
from chalice.app import Response

from chalicelib.errors import MethodNotAllowed, NotFound
from chalicelib.http.parallel_chalice import METHODS, ParallelChalice

Route = tuple[str, list[str]]
ORDERS_GET: Route = ("/orders", ["GET", "HEAD"])
ORDERS_POST: Route = ("/orders", ["POST"])
HEALTH: Route = ("/health", ["GET"])


def answer_ok(**_path: str) -> Response:
    return Response("ok")


def app_with(*routes: Route, exists: Callable[[], bool] | None = None) -> ParallelChalice:
    app = ParallelChalice("order-api")
    for path, methods in routes:
        app.route(path, methods=methods, exists=exists)(answer_ok)
    return app


def call(app: ParallelChalice, method: str, path: str) -> Response:
    response: Response = app.routes[path][method].view_function()
    return response


@pytest.mark.parametrize(
    "routes",
    [
        pytest.param([ORDERS_GET, ORDERS_POST, HEALTH], id="same path in sequence"),
        pytest.param([ORDERS_POST, HEALTH, ORDERS_GET], id="same path interleaved"),
    ],
)
def test_undeclared_methods_are_405_in_any_order(routes: list[Route]) -> None:
    app = app_with(*routes)

    assert app.allowed_methods("/orders") == ["GET", "HEAD", "POST"]
    assert app.allowed_methods("/health") == ["GET"]
    for path, methods in app.routes.items():
        assert sorted(methods) == sorted(METHODS)
        for method in METHODS:
            if method in app.allowed_methods(path):
                assert call(app, method, path).body == "ok"
            else:
                with pytest.raises(MethodNotAllowed, match=", ".join(app.allowed_methods(path))):
                    call(app, method, path)


def test_a_method_declared_twice_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="Duplicate method: 'GET'"):
        app_with(ORDERS_GET, ORDERS_POST, ORDERS_GET)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_a_hidden_path_is_404(method: str) -> None:
    hidden = app_with(ORDERS_GET, exists=lambda: False)
    shown = app_with(ORDERS_GET, exists=lambda: True)

    with pytest.raises(NotFound):
        call(hidden, method, "/orders")
    if method in ORDERS_GET[1]:
        assert call(shown, method, "/orders").body == "ok"
    else:
        with pytest.raises(MethodNotAllowed):
            call(shown, method, "/orders")
