"""Sends the cases to one host, and compares the answers with the expected ones."""

import http.client
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from tools.client import Answer, Transport
from tools.conform.cases import CASES, Case

EXPECTED = Path(__file__).with_name("expected.json")
COMPARED_HEADERS = (
    "allow",
    "cache-control",
    "content-type",
    "etag",
    "idempotent-replayed",
    "location",
    "retry-after",
    "www-authenticate",
    "x-content-type-options",
    "x-injected",
    "access-control-allow-origin",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-expose-headers",
    "access-control-max-age",
)
"""The headers that must be the same on every host."""
_MASKS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<order_id>"),
    (re.compile(r'(?<="request_id":")[^"]*'), "<request_id>"),
    (re.compile(r'(?<="next_cursor":")[^"]*'), "<cursor>"),
    (re.compile(r'(?<="(?:created|updated)_at":")\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z'), "<time>"),
    (re.compile(r'(?<="tenant_id":")[^"]*'), "<tenant>"),
    (re.compile(r'(?<="created_by":")[^"]*'), "<user>"),
)
NO_ANSWER = 0
"""In place of a status: the connection ended without an answer."""
_REFERENCE = re.compile(r"\{(\w+\.\w+)\}")
_REQUEST_ID = re.compile(r"(?!.*client)[A-Za-z0-9-]{8,128}")

Json = dict[str, Any]
Callers = Mapping[str, str | None]
"""Each caller's token. A case of any other caller is skipped."""


class Difference(NamedTuple):
    """A part of the answer that differs: `status`, `body` or a header's name."""

    part: str
    expected: str
    received: str


def expected() -> dict[str, Json]:
    answers: dict[str, Json] = json.loads(EXPECTED.read_text())
    return answers


def record(answers: Iterable[tuple[Case, Answer]]) -> None:
    """Write this host's answers as those that every host must give."""
    EXPECTED.write_text(
        json.dumps({case.name: masked(answer) for case, answer in answers}, indent=1, ensure_ascii=False)
        + "\n"
    )


def run(send: Transport, callers: Callers) -> Iterator[tuple[Case, Answer]]:
    """All cases in order, because later ones read orders of earlier ones.

    Skips those of absent callers, and those that refer to a value that an earlier answer did not have.
    """
    values = {"run": uuid4().hex}
    for case in CASES:
        references = set(_REFERENCE.findall(case.target))
        if (case.caller and case.caller not in callers) or references - values.keys():
            continue
        answer = _send(send, case, callers, values)
        values |= _kept_values(case, answer)
        yield case, answer


def masked(answer: Answer) -> Json:
    """Status, compared headers and body, with placeholders for values that differ between requests."""
    body = answer.body.decode("utf-8", "backslashreplace")
    headers = {name: answer.headers[name] for name in COMPARED_HEADERS if name in answer.headers}
    if "location" in headers:
        headers["location"] = _mask(headers["location"])
    return {"status": answer.status, "headers": headers, "body": _mask(body)}


def differences(case: Case, answer: Answer, wanted: Json) -> list[Difference]:
    """The parts of the answer that differ from `wanted` and from the case."""
    received, problem = masked(answer), members(answer)
    request_id = answer.headers.get("x-request-id", "")
    compared = [
        ("status", wanted["status"], received["status"]),
        *((name, wanted["headers"].get(name), received["headers"].get(name)) for name in COMPARED_HEADERS),
        ("body", wanted["body"], received["body"]),
        ("status of the case", case.status, answer.status),
    ]
    if case.slug:
        compared.append(("type of the case", f"urn:order-api:problem:{case.slug}", problem.get("type")))
        compared.append(("request_id", request_id, problem.get("request_id")))
    if not _REQUEST_ID.fullmatch(request_id):
        compared.append(("x-request-id", "the host's own", request_id))
    return [Difference(part, _text(good), _text(actual)) for part, good, actual in compared if good != actual]


def members(answer: Answer) -> Json:
    """The body's members if it is a JSON object, else none."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _send(send: Transport, case: Case, callers: Callers, values: Mapping[str, str]) -> Answer:
    token = {"Authorization": f"Bearer {callers[case.caller]}"} if case.caller else {}
    headers = {name: _substituted(value, values) for name, value in case.headers.items()}
    try:
        return send(case.method, _substituted(case.target, values), {**token, **headers}, case.body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(NO_ANSWER, {}, f"no answer: {error!r}".encode())


def _substituted(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text.replace("{{", "%7B").replace("}}", "%7D")


def _kept_values(case: Case, answer: Answer) -> dict[str, str]:
    body = members(answer)
    values = {"order_id": body.get("order", {}).get("order_id"), "next_cursor": body.get("next_cursor")}
    return {f"{case.keep}.{name}": value for name, value in values.items() if case.keep and value}


def _text(value: Any) -> str:
    return "absent" if value is None else str(value)


def _mask(text: str) -> str:
    for pattern, placeholder in _MASKS:
        text = pattern.sub(placeholder, text)
    return text
