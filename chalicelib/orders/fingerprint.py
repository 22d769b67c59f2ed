"""Fingerprints of requests with an Idempotency-Key, by which a different request with the key is refused.

Two forms, because instances of two releases run side by side while a deployment rolls:

- release 1.0.0's, 64 hex digits: SHA-256 of the answer's text. A release that adds a member to the answer
  would refuse every retry of a request that an earlier release answered.
- `g` and 63 hex digits: SHA-256 of the members that the client set, in canonical JSON. New members leave the
  fingerprints of earlier requests as they are.

This release accepts both and writes the first, which release 1.0.0 understands. The next writes the second.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from chalicelib.orders.new_order import NewOrder

_CANONICAL = "g"
"""The second form's version; no hex digit."""


def of_answer(content: str) -> str:
    """The form that is written. `content`: the members that the client sent, as the answer has them."""
    return hashlib.sha256(content.encode()).hexdigest()


def of_request(new: NewOrder) -> str:
    text = json.dumps(
        _set_members(new), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return _CANONICAL + hashlib.sha256(text.encode()).hexdigest()[:63]


def matches(stored: str, new: NewOrder, content: str) -> bool:
    """Whether a stored fingerprint, of either form, is that of this request."""
    return stored == (of_request(new) if stored.startswith(_CANONICAL) else of_answer(content))


def _set_members(model: BaseModel) -> dict[str, Any]:
    """What the client set, other than null, and the currency, which it may leave to DEFAULT_CURRENCY."""
    members = vars(model)
    names = model.model_fields_set | ({"currency"} & members.keys())
    return {
        name: [_set_members(item) for item in value] if isinstance(value, list) else value
        for name in names
        if (value := members[name]) is not None
    }
