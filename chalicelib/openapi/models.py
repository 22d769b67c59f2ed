"""The JSON of the answers that have no order in them, for the OpenAPI document alone."""

from typing import Any

from pydantic import BaseModel, Field

Json = dict[str, Any]


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457); `type` tells programs, `detail` and `errors` tell people."""

    type: str = Field(pattern="^urn:order-api:problem:[a-z-]+$")
    title: str
    status: int
    detail: str
    request_id: str = Field(description="The X-Request-Id of the answer")
    errors: list[FieldError] = Field(description="Each wrong field, parameter or header; often empty")


class Health(BaseModel):
    status: str
