"""The operations for load balancers, operators and tools: none needs a token."""

from pydantic import BaseModel

from chalicelib.errors import NotFound, Unavailable
from chalicelib.openapi.operation import Operation, Tag
from chalicelib.openapi.response import Content, Response

TAG = Tag("operations", "For load balancers, operators and tools")


class Health(BaseModel):
    status: str


HEALTH = Operation(
    path="/health",
    operation_id="health",
    tag=TAG,
    summary="Whether the process runs; asks no database",
    needs_token=False,
    responses=[Response(200, "It runs", content=Content(Health, {"status": "ok"}))],
)
READY = Operation(
    path="/health/ready",
    operation_id="ready",
    tag=TAG,
    summary="Whether the database answers",
    needs_token=False,
    responses=[Response(200, "It answers", content=Content(Health, {"status": "ready"}))],
    problems=[Unavailable()],
)
OPENAPI = Operation(
    path="/openapi.json",
    operation_id="openapi",
    tag=TAG,
    summary="This document; where DOCS=on",
    needs_token=False,
    responses=[Response(200, "OpenAPI 3.1", content=Content())],
    problems=[NotFound()],
)
OPERATIONS = (HEALTH, READY, OPENAPI)
