"""Oracle Functions: fdk's context and body in, fdk's response out."""

import io
import logging
from urllib.parse import urlsplit

from fdk.constants import FN_INTENT, INTENT_HTTP_REQUEST
from fdk.context import InvokeContext
from fdk.response import Response

from app import app
from shims.gateway import Answer, Gateway, Request, deadline

gateway = Gateway(app, "oci")
logging.getLogger().setLevel(logging.INFO)  # fdk sets DEBUG, at which libraries print what they send


def orders_api(ctx: InvokeContext, data: io.BytesIO) -> Response:
    return outgoing(gateway.handle(incoming(ctx, data)), ctx)


def incoming(ctx: InvokeContext, data: io.BytesIO) -> Request:
    url = urlsplit(ctx.RequestURL(), allow_fragments=False)
    return Request(
        method=ctx.Method(),
        target=f"{url.path}?{url.query}",
        # Fn prefixes every client header except Content-Type, which becomes that of the call itself.
        headers={"content-type": ctx.Headers().get("content-type", "application/json"), **ctx.HTTPHeaders()},
        body=data.getvalue(),
        id=ctx.CallID(),
        deadline=deadline(ctx.Deadline()),
    )


def outgoing(answer: Answer, ctx: InvokeContext) -> Response:
    ctx.Headers()[FN_INTENT] = INTENT_HTTP_REQUEST  # a client's Fn-Intent header replaces Fn's own
    return Response(
        ctx,
        response_data=answer.body,
        status_code=answer.status,
        headers=answer.headers,
    )
