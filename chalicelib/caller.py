"""The tenant and the user that a verified token names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.errors import MissingTenant, Unauthorized
from chalicelib.settings.identity_provider import COGNITO_NAMES, ClaimNames

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Caller:
    """Neither the tenant nor the user is ever empty."""

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
        """Raises MissingTenant without a valid tenant, Unauthorized without a valid user."""
        email = _first(claims, names.email)
        return cls(
            tenant_id=_first(claims, names.tenant),
            user_id=_first(claims, names.user),
            email=email if isinstance(email, str) else None,
        )


def _first(claims: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first name that is present, also if it is invalid: the next name is not tried."""
    for name in names:
        value = claims[name] if name in claims else _at(name.split("."), claims)
        if value is not _ABSENT:
            return value
    return None


def _at(path: Sequence[str], claims: Any) -> Any:
    """The value at a path of nested claims, else _ABSENT."""
    for part in path:
        if not isinstance(claims, dict) or part not in claims:
            return _ABSENT
        claims = claims[part]
    return claims


def _is_name(value: object) -> bool:
    """Whether the columns can hold it: 1..255 printable characters, not only spaces."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255 and not value.isspace()
