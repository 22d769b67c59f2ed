"""JSON as it was written: numbers exact, repeated members refused (RFC 8259, I-JSON RFC 7493)."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from chalicelib.errors import MalformedRequest

DEEPEST = 32
OUT_OF_RANGE = Decimal("Infinity")
"""Stands for a number whose exponent no Decimal holds; JSON itself has no infinity."""


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
    """Whether arrays and objects nest beyond DEEPEST."""
    level = [value]
    for _ in range(DEEPEST + 1):
        nested = [each for each in level if isinstance(each, dict | list)]
        if not nested:
            return False
        level = [inner for each in nested for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def too_deep() -> MalformedRequest:
    return MalformedRequest(f"The body nests deeper than {DEEPEST} levels.")


def nameable(name: str) -> str:
    """A member name of the client's that is safe to name in an answer: no surrogates, not long."""
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
