"""Azure Functions: the host's HttpRequest in, its HttpResponse out."""

from urllib.parse import urlsplit

from azure.functions import AuthLevel, Context, FunctionApp, HttpRequest, HttpResponse

from app import app
from shims.gateway import Answer, Gateway, Request

gateway = Gateway(app, "azure")
functions = FunctionApp(http_auth_level=AuthLevel.ANONYMOUS)  # the gateway verifies tokens


@functions.function_name("orders_api")
@functions.route("{*path}")
def orders_api(req: HttpRequest, context: Context) -> HttpResponse:
    return outgoing(gateway.handle(incoming(req, context)))


def incoming(req: HttpRequest, context: Context) -> Request:
    url = urlsplit(req.url, allow_fragments=False)
    return Request(
        method=req.method,
        target=f"{url.path}?{url.query}",
        headers=dict(req.headers),
        body=req.get_body(),
        id=context.invocation_id,
    )


def outgoing(answer: Answer) -> HttpResponse:
    return HttpResponse(
        answer.body,
        status_code=answer.status,
        headers=answer.headers,
    )
