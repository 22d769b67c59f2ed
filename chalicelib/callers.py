"""Who is asking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chalicelib.errors import MissingTenant, Unauthorized


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
    def from_claims(cls, claims: Mapping[str, Any]) -> "Caller":
        """Read Cognito's claims. Raises MissingTenant without a tenant, Unauthorized without a user."""
        return cls(
            tenant_id=claims.get("custom:tenant_id", ""),
            user_id=claims.get("sub", ""),
            email=claims.get("email"),
        )


def _is_name(value: object) -> bool:
    """Text that the columns can hold: 1..255 printable characters, not only spaces."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255 and not value.isspace()
