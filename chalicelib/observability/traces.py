"""W3C Trace Context: the client's trace that a request belongs to (https://www.w3.org/TR/trace-context/)."""

import os
import re

# A later version may append fields after a dash; version 00 may not, and version ff is invalid.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03
"""Sampled, and random trace id; all other flags MUST be zero in what is passed on."""


class Trace:
    """The client's trace, and this request's span in it."""

    __slots__ = ("flags", "span_id", "trace_id")

    def __init__(self, trace_id: str, flags: int) -> None:
        self.trace_id, self.flags = trace_id, flags
        self.span_id = _new_span_id()

    @property
    def traceparent(self) -> str:
        """The header to pass on: the client's trace with this request's span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def received(header: str | None) -> Trace | None:
    """The trace in a `traceparent` header; None without a header, or if it is malformed."""
    match = _TRACEPARENT.fullmatch(header.strip(" \t")) if header else None
    if not match:
        return None
    version, trace_id, parent_id, flags, later_fields = match.groups()
    if not int(trace_id, 16) or not int(parent_id, 16) or (version == "00" and later_fields):
        return None
    return Trace(trace_id, int(flags, 16) & _KNOWN_FLAGS)


def _new_span_id() -> str:
    while True:
        span_id = os.urandom(8).hex()
        if int(span_id, 16):  # all zeros is invalid
            return span_id
