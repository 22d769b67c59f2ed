"""An order as an HTTP answer: its body, its ETag, its Location."""

from chalice.app import Response

from chalicelib.http.current_request import has_current_version
from chalicelib.orders.repository import StoredOrder


def created(order: StoredOrder) -> Response:
    """201, also when an Idempotency-Key repeats an earlier answer."""
    replayed = {"Idempotent-Replayed": "true"} if order.replayed else {}
    return Response(
        f'{{"message":"Order created successfully","order":{order.json}}}',
        {"Location": f"orders/{order.order_id}", "ETag": _etag(order), **replayed},
        status_code=201,
    )


def current_version(order: StoredOrder) -> Response:
    """The order; 304 without a body if the client has this version."""
    etag = _etag(order)
    if has_current_version(etag):
        return Response("", {"ETag": etag}, status_code=304)
    return Response(f'{{"order":{order.json}}}', {"ETag": etag})


def _etag(order: StoredOrder) -> str:
    return f'"{order.version}"'
