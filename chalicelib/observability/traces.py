"""W3C Trace Context: whose request this is a part of (https://www.w3.org/TR/trace-context/)."""

import os
import re

# A later version may have more behind a dash; version 00 has not, and version ff is none.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03
"""Sampled, and random trace id; all others MUST be zero in what is passed on."""


class Trace:
    """The caller's trace, and our own place in it."""

    __slots__ = ("flags", "span_id", "trace_id")

    def __init__(self, trace_id: str, flags: int) -> None:
        self.trace_id, self.flags = trace_id, flags
        self.span_id = _new_span_id()

    @property
    def traceparent(self) -> str:
        """What is passed on: the caller's trace with our span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def received(header: str | None) -> Trace | None:
    """The trace that a `traceparent` header names; None when there is none, or it is malformed."""
    found = _TRACEPARENT.fullmatch(header.strip(" \t")) if header else None
    if not found:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if not int(trace_id, 16) or not int(parent_id, 16) or (version == "00" and more):
        return None
    return Trace(trace_id, int(flags, 16) & _KNOWN_FLAGS)


def _new_span_id() -> str:
    while True:
        if int(found := os.urandom(8).hex(), 16):
            return found
