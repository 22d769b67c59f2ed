"""API Gateway's own errors and preflight answers, in the form of the API's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app import app
from chalicelib.database.errors import OutcomeUnknown
from chalicelib.errors import (
    Internal,
    MalformedRequest,
    NotFound,
    PayloadTooLarge,
    Problem,
    RateLimited,
    Unauthorized,
    UnsupportedMediaType,
)

PROBLEMS: Mapping[str, Problem] = {
    "ACCESS_DENIED": Unauthorized(),
    "BAD_REQUEST_BODY": MalformedRequest(),
    "BAD_REQUEST_PARAMETERS": MalformedRequest(),
    # Errors without a type of their own: a token on an unknown path is parsed as a malformed AWS signature.
    "DEFAULT_4XX": NotFound(),
    "DEFAULT_5XX": Internal(),
    "EXPIRED_TOKEN": Unauthorized(),
    # The function may have placed the order before it crashed or timed out.
    "INTEGRATION_FAILURE": OutcomeUnknown(),
    "INTEGRATION_TIMEOUT": OutcomeUnknown(),
    "INVALID_API_KEY": Unauthorized(),
    "INVALID_SIGNATURE": NotFound(),
    "MISSING_AUTHENTICATION_TOKEN": NotFound(),
    "QUOTA_EXCEEDED": RateLimited(),
    "REQUEST_TOO_LARGE": PayloadTooLarge(),
    "RESOURCE_NOT_FOUND": NotFound(),
    "THROTTLED": RateLimited(),
    "UNAUTHORIZED": Unauthorized(),
    "UNSUPPORTED_MEDIA_TYPE": UnsupportedMediaType(),
    "WAF_FILTERED": MalformedRequest(),
}
"""The API's problem for each type of API Gateway's own errors."""

REQUEST_ID = "context.requestId"


@dataclass(frozen=True)
class GatewayResponse:
    """One of API Gateway's own answers, in API Gateway's notation."""

    status: str
    headers: dict[str, str]
    """Mapping expressions: `'a constant'` or `context.requestId`."""
    body: str
    """The template, in which API Gateway replaces `$context.requestId`."""


def gateway_responses() -> dict[str, GatewayResponse]:
    return {kind: _as_gateway_response(problem) for kind, problem in PROBLEMS.items()}


def mapped(headers: Mapping[str, Any]) -> dict[str, str]:
    """Constant headers and the request's id, as mapping expressions."""
    return {**{name: f"'{value}'" for name, value in headers.items()}, "X-Request-Id": REQUEST_ID}


def _as_gateway_response(problem: Problem) -> GatewayResponse:
    answer = problem.response(f"${REQUEST_ID}")
    headers = mapped({**app.common_headers, **answer.headers})
    return GatewayResponse(str(answer.status_code), headers, answer.body)


def put(gateway: Any, api: str, stage: str) -> None:
    """Set all responses on a REST API and deploy its stage. Idempotent."""
    for kind, response in gateway_responses().items():
        gateway.put_gateway_response(
            restApiId=api,
            responseType=kind,
            statusCode=response.status,
            responseParameters={
                f"gatewayresponse.header.{name}": value for name, value in response.headers.items()
            },
            responseTemplates={"application/json": response.body},
        )
    pages = gateway.get_paginator("get_resources").paginate(restApiId=api, embed=["methods"])
    for page in pages:
        for resource in page["items"]:
            if "OPTIONS" in resource.get("resourceMethods", {}):
                _put_preflight(gateway, resource["resourceMethods"]["OPTIONS"], api, resource["id"])
    gateway.create_deployment(restApiId=api, stageName=stage, description="gateway responses")


def _put_preflight(gateway: Any, preflight: Any, api: str, resource: str) -> None:
    """Add the headers to Chalice's answer, which must be deleted first: API Gateway cannot overwrite it."""
    added = {f"method.response.header.{name}": value for name, value in mapped(app.common_headers).items()}
    declared = preflight["methodResponses"]["200"]
    integration = preflight["methodIntegration"]["integrationResponses"]["200"]
    response = {"restApiId": api, "resourceId": resource, "httpMethod": "OPTIONS", "statusCode": "200"}
    gateway.delete_integration_response(**response)
    gateway.delete_method_response(**response)
    gateway.put_method_response(
        **response,
        responseParameters={**declared.get("responseParameters", {}), **dict.fromkeys(added, False)},
        responseModels=declared.get("responseModels", {}),
    )
    gateway.put_integration_response(
        **response,
        responseParameters={**integration.get("responseParameters", {}), **added},
        responseTemplates=integration.get("responseTemplates", {}),
    )
