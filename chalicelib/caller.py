"""Who is asking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.errors import MissingTenant, Unauthorized
from chalicelib.settings.identity_provider import COGNITO_NAMES, ClaimNames

_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What a shim's gateway says of a request: a Python object, so that no request can make one."""

    ends_at: float | None = None
    """When the host will end the request, by time.monotonic(); None where it does not say."""


@dataclass(frozen=True, slots=True)
class Verified(Invocation):
    """One whose claims the gateway has verified."""

    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant and the user of a verified token; neither is ever empty."""

    tenant_id: str
    user_id: str
    email: str | None = None

    def __post_init__(self) -> None:
        if not _is_name(self.tenant_id):
            raise MissingTenant
        if not _is_name(self.user_id):
            raise Unauthorized

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any], names: ClaimNames = COGNITO_NAMES) -> "Caller":
        """Raises MissingTenant without a good tenant, Unauthorized without a good user."""
        email = _first(claims, names.email)
        return cls(
            tenant_id=_first(claims, names.tenant),
            user_id=_first(claims, names.user),
            email=email if isinstance(email, str) else None,
        )


def _first(claims: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first name that is present; a wrong value never leads on to the next name."""
    for name in names:
        found = claims[name] if name in claims else _at(name.split("."), claims)
        if found is not _ABSENT:
            return found
    return None


def _at(path: Sequence[str], claims: Any) -> Any:
    """What the path leads to, else _ABSENT."""
    for part in path:
        if not isinstance(claims, dict) or part not in claims:
            return _ABSENT
        claims = claims[part]
    return claims


def _is_name(value: object) -> bool:
    """Text that the columns can hold: 1..255 printable characters, not only spaces."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255 and not value.isspace()
