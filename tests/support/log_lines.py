"""Parses lines of the log."""

import json
import re
from typing import Any

Line = dict[str, Any]

REQUEST_MEMBERS = {
    "time",
    "level",
    "request_id",
    "tenant",
    "user",
    "route",
    "host",
    "status",
    "ms",
    "database_ms",
    "database_trips",
    "pool_ms",
    "cold_start",
}
"""Members of each request line."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def lines(text: str) -> list[Line]:
    """The lines that are JSON objects with `time` and `level`; other lines are skipped."""
    records = []
    for line in text.splitlines():
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict) and {"time", "level"} <= parsed.keys():
            records.append(parsed)
    return records


def of_requests(text: str) -> dict[str, Line]:
    """The request lines by request id; fails if an id has two."""
    by_request: dict[str, Line] = {}
    for line in lines(text):
        if "status" in line:
            assert line["request_id"] not in by_request, line
            by_request[line["request_id"]] = line
    return by_request
