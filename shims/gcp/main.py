"""Google Cloud Functions and Cloud Run: Flask's request in, Flask's response out."""

from collections.abc import Iterable
from typing import Any

import functions_framework
from flask import Request as FlaskRequest
from flask import Response, current_app
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import Headers

from app import app
from shims.gateway import Answer, Gateway, Request

gateway = Gateway(app, "gcp")


@functions_framework.http
def orders_api(request: FlaskRequest) -> Response:
    return outgoing(gateway.handle(incoming(request)))


def incoming(request: FlaskRequest) -> Request:
    return Request(
        method=request.method,
        target=request.environ["RAW_URI"],
        headers=dict(request.headers),
        body=request.get_data(),
    )


def outgoing(answer: Answer) -> Response:
    return ExactResponse(
        answer.body,
        status=answer.status,
        headers=answer.headers,
    )


def wsgi_app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Replaces Flask's routes, which redirect //orders and refuse /robots.txt, and are much slower."""
    request = FlaskRequest(environ)
    answer = gateway.handle_read(request.method, lambda: incoming(request), ParseException, OSError)
    return outgoing(answer)(environ, start_response)


current_app.wsgi_app = wsgi_app  # type: ignore[method-assign]


class ExactResponse(Response):
    """Keeps the Content-Type of a 304, which Werkzeug drops."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        headers = super().get_wsgi_headers(environ)
        headers["Content-Type"] = self.headers["Content-Type"]
        return headers
