"""Reads lines of the log, as whatever collects them would."""

import json
import re
from typing import Any

Line = dict[str, Any]

OF_A_REQUEST = {
    *("time", "level", "request_id", "tenant", "user", "route", "host", "status", "ms"),
    *("database_ms", "database_trips", "pool_ms", "cold_start"),
}
"""Members of every request's line."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def lines(text: str) -> list[Line]:
    """The lines that are JSON objects with our members; others are somebody else's."""
    found = []
    for line in text.splitlines():
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict) and {"time", "level"} <= parsed.keys():
            found.append(parsed)
    return found


def of_requests(text: str) -> dict[str, Line]:
    """Each request's own line, by the request's id; never two of one."""
    found: dict[str, Line] = {}
    for line in lines(text):
        if "status" in line:
            assert line["request_id"] not in found, line
            found[line["request_id"]] = line
    return found
