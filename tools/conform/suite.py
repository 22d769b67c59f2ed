"""Sends the list to one host, and compares the answers with the expected ones."""

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
MEANINGFUL = (
    *("allow", "cache-control", "content-type", "etag", "idempotent-replayed", "location", "retry-after"),
    *("www-authenticate", "x-content-type-options", "x-injected"),
    *("access-control-allow-origin", "access-control-allow-headers", "access-control-allow-methods"),
    *("access-control-expose-headers", "access-control-max-age"),
)
"""The headers that must be the same everywhere."""
_MASKS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<order_id>"),
    (re.compile(r'(?<="request_id":")[^"]*'), "<request_id>"),
    (re.compile(r'(?<="next_cursor":")[^"]*'), "<cursor>"),
    (re.compile(r'(?<="(?:created|updated)_at":")\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z'), "<time>"),
    (re.compile(r'(?<="tenant_id":")[^"]*'), "<tenant>"),
    (re.compile(r'(?<="created_by":")[^"]*'), "<user>"),
)
NO_ANSWER = 0
"""The status of a connection that ended without one."""
_KEPT = re.compile(r"\{(\w+\.\w+)\}")
_REQUEST_ID = re.compile(r"(?!.*client)[A-Za-z0-9-]{8,128}")

Json = dict[str, Any]
Callers = Mapping[str, str | None]
"""Each caller's token. A case whose caller is not among them is left out."""


class Difference(NamedTuple):
    """A part of the answer that is not as it must be: `status`, `body` or a header's name."""

    part: str
    expected: str
    came: str


def expected() -> dict[str, Json]:
    found: dict[str, Json] = json.loads(EXPECTED.read_text())
    return found


def record(answers: Iterable[tuple[Case, Answer]]) -> None:
    """Write what this door answered as what every door must answer."""
    EXPECTED.write_text(
        json.dumps({case.name: masked(answer) for case, answer in answers}, indent=1, ensure_ascii=False)
        + "\n"
    )


def run(send: Transport, callers: Callers) -> Iterator[tuple[Case, Answer]]:
    """Every case in its order, since later ones read what earlier ones wrote.

    Left out are those of absent callers, and those that need what an earlier answer did not hold.
    """
    known = {"run": uuid4().hex}
    for case in CASES:
        if (case.caller and case.caller not in callers) or set(_KEPT.findall(case.target)) - known.keys():
            continue
        answer = _ask(send, case, callers, known)
        known |= _kept(case, answer)
        yield case, answer


def masked(answer: Answer) -> Json:
    """Status, meaningful headers and body, without what differs from one request to the next."""
    body = answer.body.decode("utf-8", "backslashreplace")
    headers = {name: answer.headers[name] for name in MEANINGFUL if name in answer.headers}
    if "location" in headers:
        headers["location"] = _mask(headers["location"])
    return {"status": answer.status, "headers": headers, "body": _mask(body)}


def differences(case: Case, answer: Answer, wanted: Json) -> list[Difference]:
    """What is not as it must be; nothing when all is well."""
    found, problem = masked(answer), members(answer)
    request_id = answer.headers.get("x-request-id", "")
    compared = [
        ("status", wanted["status"], found["status"]),
        *((name, wanted["headers"].get(name), found["headers"].get(name)) for name in MEANINGFUL),
        ("body", wanted["body"], found["body"]),
        ("status, says the list", case.status, answer.status),
    ]
    if case.slug:
        compared.append(("type, says the list", f"urn:order-api:problem:{case.slug}", problem.get("type")))
        compared.append(("request_id", request_id, problem.get("request_id")))
    if not _REQUEST_ID.fullmatch(request_id):
        compared.append(("x-request-id", "the host's own", request_id))
    return [Difference(part, _text(good), _text(came)) for part, good, came in compared if good != came]


def members(answer: Answer) -> Json:
    """Of the body, when it is a JSON object."""
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ask(send: Transport, case: Case, callers: Callers, known: Mapping[str, str]) -> Answer:
    token = {"Authorization": f"Bearer {callers[case.caller]}"} if case.caller else {}
    headers = {name: _filled(value, known) for name, value in case.headers.items()}
    try:
        return send(case.method, _filled(case.target, known), {**token, **headers}, case.body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(NO_ANSWER, {}, f"no answer: {error!r}".encode())


def _filled(text: str, known: Mapping[str, str]) -> str:
    for name, value in known.items():
        text = text.replace(f"{{{name}}}", value)
    return text.replace("{{", "%7B").replace("}}", "%7D")


def _kept(case: Case, answer: Answer) -> dict[str, str]:
    body = members(answer)
    found = {"order_id": body.get("order", {}).get("order_id"), "next_cursor": body.get("next_cursor")}
    return {f"{case.keep}.{name}": value for name, value in found.items() if case.keep and value}


def _text(value: Any) -> str:
    return "absent" if value is None else str(value)


def _mask(text: str) -> str:
    for pattern, sign in _MASKS:
        text = pattern.sub(sign, text)
    return text
