"""Who is asking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.errors import MissingTenant, Unauthorized
from chalicelib.settings import COGNITO_NAMES, ClaimNames


@dataclass(frozen=True, slots=True)
class Verified:
    """Claims that a shim's gateway verified: a Python object, so that no request can make one."""

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
    return next((found for name in names for found in _values(claims, name)), None)


def _values(claims: Mapping[str, Any], name: str) -> list[Any]:
    """The claim of this very name, else what the dotted path leads to, else nothing."""
    if name in claims:
        return [claims[name]]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return []
        found = found[part]
    return [found]


def _is_name(value: object) -> bool:
    """Text that the columns can hold: 1..255 printable characters, not only spaces."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255 and not value.isspace()
