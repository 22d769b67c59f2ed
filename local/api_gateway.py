"""API Gateway in front of a Lambda function, made from the packaged SAM template and from nothing else.

It finds the resource, verifies Cognito's ID token where the method has an authorizer, sends the function the
event of a REST API's Lambda proxy integration, and checks its result. Its own errors are the template's
gateway responses.
"""

import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from chalicelib.errors import Unauthorized
from chalicelib.identity import tokens
from local import front

Json = dict[str, Any]
Invoke = Callable[[bytes], bytes]
"""An event to the function's result, both as JSON. Raises TimeoutError after API Gateway's timeout."""

MAX_BODY = 10 * 1024 * 1024
MAX_EVENT = 6 * 1024 * 1024
"""Lambda's limit for what a function is called with."""
FALLBACKS = {
    "API_CONFIGURATION_ERROR": "DEFAULT_5XX",
    "INTEGRATION_TIMEOUT": "DEFAULT_5XX",
    "MISSING_AUTHENTICATION_TOKEN": "DEFAULT_4XX",
    "REQUEST_TOO_LARGE": "DEFAULT_4XX",
    "UNAUTHORIZED": "DEFAULT_4XX",
}
"""API Gateway's types of its own errors, each with the type used when the template does not define it."""
RESULT = {"statusCode", "headers", "multiValueHeaders", "body", "isBase64Encoded"}
DATES = ("exp", "iat")
"""Claims that become a Java date's text; every other becomes the text of its JSON."""

_PARAMETER = re.compile(r"\\\{(\w+)\\\}")
_VARIABLE = re.compile(r"\$(context\.[\w.]*\w)")


class Refused(Exception):
    """API Gateway rejects the request itself; the argument is the response type, a key of FALLBACKS."""


@dataclass(frozen=True)
class Request:
    """A request as the client sent it."""

    method: str
    target: str
    headers: front.Pairs
    body: bytes = b""
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def header_values(self) -> dict[str, list[str]]:
        """Each header under its first spelling, with its values in their order."""
        values: dict[str, tuple[str, list[str]]] = {}
        for name, value in self.headers:
            values.setdefault(name.lower(), (name, []))[1].append(value)
        return dict(values.values())

    def header(self, name: str) -> str | None:
        """The last value of the header."""
        return next((value for sent, value in reversed(self.headers) if sent.lower() == name), None)


class ApiGateway:
    """The stage that the template describes, at the root of its own host name."""

    def __init__(self, template: Json, invoke: Invoke) -> None:
        api = of_type(template, "AWS::Serverless::Api")
        paths: Mapping[str, Json] = api["DefinitionBody"]["paths"]
        # "{" sorts after every letter, so that literal parts are tried before parameters.
        self._resources = [(_pattern(path), path, paths[path]) for path in sorted(paths)]
        self._responses: Mapping[str, Json] = api["GatewayResponses"]
        self._stage: str = api["StageName"]
        self._invoke = invoke

    def exchange(self, method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        request = Request(method, target, headers, body)
        try:
            return self._answer(request)
        except Refused as refused:
            return self._refusal(str(refused), request)

    def event(self, request: Request, encoded: bool = False) -> Json:
        """The event that the function is called with; `encoded`: with a text body in base64 too.

        Raises Refused when the function is not called.
        """
        resource, parameters, operation = self._match(request)
        authorizer = {"authorizer": {"claims": _verified(request)}} if operation.get("security") else {}
        headers, query, body = request.header_values(), request.query, request.body
        encoded = encoded or not _is_text(body)
        return {
            "resource": resource,
            "path": request.path,
            "httpMethod": request.method,
            "headers": _last(headers),
            "multiValueHeaders": headers or None,
            "queryStringParameters": _last(query),
            "multiValueQueryStringParameters": query or None,
            "pathParameters": parameters or None,
            "stageVariables": None,
            "requestContext": {
                "resourcePath": resource,
                "httpMethod": request.method,
                "path": f"/{self._stage}{request.path}",
                "stage": self._stage,
                "requestId": request.id,
                "identity": {"sourceIp": "127.0.0.1"},
                **authorizer,
            },
            "body": (b64encode(body) if encoded else body).decode() or None,
            "isBase64Encoded": encoded,
        }

    def _answer(self, request: Request) -> front.Reply:
        integration = self._match(request)[2]["x-amazon-apigateway-integration"]
        if integration["type"] == "mock":
            return _mocked(integration["responses"]["default"], request)
        event = json.dumps(self.event(request), ensure_ascii=False).encode(errors="replace")
        # The front truncates a body that is too large for the app; Content-Length has its real size.
        if int(request.header("content-length") or 0) > MAX_BODY or len(event) > MAX_EVENT:
            raise Refused("REQUEST_TOO_LARGE")
        try:
            result = self._invoke(event)
        except TimeoutError:
            raise Refused("INTEGRATION_TIMEOUT") from None
        return _reply(result)

    def _match(self, request: Request) -> tuple[str, dict[str, str], Json]:
        """The resource, its parameters (still percent-encoded), and the method's entry in the template."""
        for pattern, resource, operations in self._resources:
            match = pattern.fullmatch(request.path)
            if match and request.method.lower() in operations:
                return resource, match.groupdict(), operations[request.method.lower()]
        raise Refused("MISSING_AUTHENTICATION_TOKEN")

    def _refusal(self, kind: str, request: Request) -> front.Reply:
        response = self._responses.get(kind) or self._responses[FALLBACKS[kind]]
        context = _context(request)
        body = response["ResponseTemplates"]["application/json"]
        return (
            int(response["StatusCode"]),
            _mapped(response["ResponseParameters"]["Headers"], request),
            _VARIABLE.sub(lambda variable: context[variable[1]], body).encode(),
        )


def of_type(template: Json, kind: str) -> Json:
    """The properties of the template's one resource of that type."""
    (resource,) = [resource for resource in template["Resources"].values() if resource["Type"] == kind]
    properties: Json = resource["Properties"]
    return properties


def _pattern(resource: str) -> re.Pattern[str]:
    """A trailing slash leads to the same resource (powertools-lambda-python, issue 1552)."""
    return re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", re.escape(resource)) + "/?")


def _verified(request: Request) -> dict[str, str]:
    """The token's claims as API Gateway writes them: every value is text."""
    try:
        claims = tokens.claims(request.header("authorization"))
    except Unauthorized:
        raise Refused("UNAUTHORIZED") from None
    return {name: _text(name, value) for name, value in claims.items()}


def _text(name: str, value: Any) -> str:
    if name in DATES:
        return time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(value))
    return value if isinstance(value, str) else json.dumps(value)


def _last(values: Mapping[str, list[str]]) -> dict[str, str] | None:
    return {name: several[-1] for name, several in values.items()} or None


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mocked(response: Json, request: Request) -> front.Reply:
    """The answer of a mock integration: Chalice's to a preflight."""
    headers = {
        name.removeprefix("method.response.header."): value
        for name, value in response["responseParameters"].items()
    }
    return int(response["statusCode"]), _mapped(headers, request), b""


def _mapped(headers: Mapping[str, str], request: Request) -> list[tuple[str, str]]:
    """Values of mapping expressions: `'a constant'`, or one of the context's variables."""
    context = _context(request)
    return [
        (name, value[1:-1] if value.startswith("'") else context[value]) for name, value in headers.items()
    ]


def _context(request: Request) -> dict[str, str]:
    return {"context.requestId": request.id}


def _reply(result: bytes) -> front.Reply:
    """Raises Refused for what is no proxy result: API Gateway's "Malformed Lambda proxy response"."""
    try:
        answer = json.loads(result)
        if not answer.keys() <= RESULT:
            raise ValueError("unknown members")
        single = {name: [value] for name, value in (answer.get("headers") or {}).items()}
        headers = {**single, **(answer.get("multiValueHeaders") or {})}
        pairs = [(name, str(value)) for name, values in headers.items() for value in values]
        # Base64 stays base64: the API has no binary media types.
        return int(answer["statusCode"]), pairs, (answer.get("body") or "").encode()
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Refused("API_CONFIGURATION_ERROR") from None
