"""Google Cloud Functions and Cloud Run: Flask's request in, Flask's response out."""

from typing import Any

import functions_framework
from flask import Request as FlaskRequest
from flask import Response, current_app
from flask import request as flask_request
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import Headers

from app import app
from shims.gateway import Answer, Gateway, Request

gateway = Gateway(app)


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


# In the view's place, before the framework's own routes: they redirect //orders and refuse /robots.txt.
current_app.before_request(lambda: orders_api(flask_request))


@current_app.errorhandler(ParseException)
@current_app.errorhandler(OSError)
def unreadable(_: Exception) -> Response:
    """The body: a bad chunk, or half of it."""
    return outgoing(gateway.unreadable(flask_request.method))


class Exact(Response):
    """Keeps the Content-Type of a 304, which Werkzeug drops."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        headers = super().get_wsgi_headers(environ)
        headers["Content-Type"] = self.headers["Content-Type"]
        return headers
