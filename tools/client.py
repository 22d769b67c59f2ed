"""An HTTP client of the order API, for tests and tools."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SEED_BYTES = (Path(__file__).parents[1] / "test_order.json").read_bytes()


def seed(**changes: Any) -> dict[str, Any]:
    """The seed order, with some members changed; None is sent as null."""
    return {**json.loads(SEED_BYTES), **changes}


def item(**changes: Any) -> dict[str, Any]:
    """The seed order's item, with some members changed."""
    return {**json.loads(SEED_BYTES)["items"][0], **changes}


def free_port() -> int:
    """A loopback TCP port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        return str(self.json["type"]).removeprefix("urn:order-api:problem:")

    @property
    def fields(self) -> list[str]:
        return [error["field"] for error in self.json["errors"]]


class Transport(Protocol):
    def __call__(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer: ...


class Client:
    """Sends requests as one caller; `token=None` sends none."""

    def __init__(self, transport: Transport, token: str | None) -> None:
        self._transport = transport
        self._token = token

    def send(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        authorization = {} if self._token is None else {"authorization": f"Bearer {self._token}"}
        return self._transport(method, target, {**authorization, **(headers or {})}, body)

    def get(self, target: str, **headers: str) -> Answer:
        return self.send("GET", target, headers={name.replace("_", "-"): v for name, v in headers.items()})

    def place(self, order: Any = None, key: str | None = None, raw: bytes | None = None) -> Answer:
        """POST an order: the seed, a value to write as JSON, or raw bytes."""
        body = raw if raw is not None else SEED_BYTES if order is None else json.dumps(order).encode()
        headers = {"content-type": "application/json", **({"idempotency-key": key} if key else {})}
        return self.send("POST", "/orders", body, headers)


def over_http(host: str, port: int) -> Transport:
    """A new connection for each request, so that tests do not affect each other."""

    def send(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request(method, target, body or None, dict(headers))
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, received, response.read())
        finally:
            connection.close()

    return send
