"""Parses JSON strictly: exact numbers, no repeated members (RFC 8259, I-JSON RFC 7493)."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from chalicelib.errors import MalformedRequest

MAX_DEPTH = 32
OUT_OF_RANGE = Decimal("Infinity")
"""Replaces a number whose exponent is too large for Decimal; JSON itself has no infinity."""


def parse(body: bytes) -> Any:
    """The value in `body`: numbers as int or Decimal, never a binary float.

    Raises MalformedRequest on anything that is not one UTF-8 JSON value with unique member names.
    """
    if not body:
        raise MalformedRequest("The body is empty: send an order as JSON.")
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    except RecursionError:
        raise too_deep() from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedRequest(f"The body is not JSON: {error.msg} at {where}.") from None


def is_too_deep(value: Any) -> bool:
    """Whether arrays and objects nest deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return False
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def too_deep() -> MalformedRequest:
    return MalformedRequest(f"The body nests deeper than {MAX_DEPTH} levels.")


def nameable(name: str) -> str:
    """A client's member name, made safe to repeat in an answer: no surrogates, at most 100 characters."""
    return name[:100].encode("utf-8", "replace").decode()


def _exact(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        return OUT_OF_RANGE


def _whole(text: str) -> int | Decimal:
    # int() refuses more than 4,300 digits and takes quadratic time below that.
    return int(text) if len(text) < 20 else Decimal(text)


def _refuse(constant: str) -> NoReturn:
    raise MalformedRequest(f"The body is not JSON: {constant} is no JSON number.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        where = [(nameable(repeated), "appears more than once: send it once")]
        raise MalformedRequest("The body names a member twice.", where)
    return members


_DECODER = json.JSONDecoder(
    parse_float=_exact, parse_int=_whole, parse_constant=_refuse, object_pairs_hook=_unique
)
