"""Google Cloud Functions and Cloud Run: Flask's request in, Flask's response out."""

from typing import TYPE_CHECKING

import functions_framework
from flask import Request as FlaskRequest
from flask import Response, current_app
from flask import request as flask_request
from werkzeug.datastructures import Headers

from app import app
from shims.gateway import Answer, Gateway, Request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

gateway = Gateway(app)
current_app.url_map.merge_slashes = False  # else Werkzeug redirects //orders to /orders


@functions_framework.http
def orders_api(request: FlaskRequest) -> Response:
    return outgoing(gateway.answer(incoming(request)))


def incoming(request: FlaskRequest) -> Request:
    return Request(
        method=request.method,
        target=request.environ["RAW_URI"],
        headers=dict(request.headers),
        body=request.get_data(),
    )


def outgoing(answer: Answer) -> Response:
    return Exact(
        answer.body,
        status=answer.status,
        headers=answer.headers,
    )


@current_app.errorhandler(404)
def elsewhere(_: Exception) -> Response:
    """What the framework's own routes do not let through: a line break in a path, /robots.txt."""
    return outgoing(gateway.answer(incoming(flask_request)))


class Exact(Response):
    """Keeps the Content-Type of a 304, which Werkzeug drops."""

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        headers = super().get_wsgi_headers(environ)
        headers["Content-Type"] = self.headers["Content-Type"]
        return headers
