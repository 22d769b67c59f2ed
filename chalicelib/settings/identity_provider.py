"""AUTH_PROVIDER, COGNITO_USER_POOL_ARN, AUTH_..._CLAIM: the tokens' provider, and their claims."""

import re
from typing import NamedTuple

from chalicelib.settings.aws_lambda import on_lambda
from chalicelib.settings.environment import SettingsError, comma_separated, required, text

PROVIDERS = ("cognito", "entra", "firebase", "oidc")
_USER_POOL_ARN = re.compile(r"arn:aws[a-z-]*:cognito-idp:([a-z0-9-]+):\d{12}:userpool/([\w-]+_[0-9a-zA-Z]+)")


class ClaimNames(NamedTuple):
    """The claims that hold tenant, user and e-mail; of several names the first that is present counts.

    A name is first looked up as it stands, dots included, then as a dotted path into objects.
    """

    tenant: tuple[str, ...]
    user: tuple[str, ...]
    email: tuple[str, ...]


COGNITO_NAMES = ClaimNames(("custom:tenant_id",), ("sub",), ("email",))
_NAMES = {
    "cognito": COGNITO_NAMES,
    "entra": ClaimNames(("tid",), ("oid", "sub"), ("email", "preferred_username")),
    "firebase": ClaimNames(("firebase.tenant", "tenant_id"), ("sub",), ("email",)),
    "oidc": ClaimNames(("tenant_id",), ("sub",), ("email",)),
}


def claim_names() -> ClaimNames:
    """The provider's names, or those in AUTH_TENANT_CLAIM, AUTH_USER_CLAIM and AUTH_EMAIL_CLAIM."""
    default = _NAMES[provider()]
    return ClaimNames(
        tenant=_names("AUTH_TENANT_CLAIM", default.tenant),
        user=_names("AUTH_USER_CLAIM", default.user),
        email=_names("AUTH_EMAIL_CLAIM", default.email),
    )


def user_pools() -> list[str]:
    """The Cognito user pools of API Gateway's authorizer; none when another provider is configured."""
    if provider() != "cognito":
        return []
    user_pool()
    return [text("COGNITO_USER_POOL_ARN")]


def is_accepted_client(app_client: object) -> bool:
    """Whether AUTH_AUDIENCE, where it is set, names the `aud` of a token that API Gateway verified.

    API Gateway takes the ID tokens of every app client of the pool; each of them names its client.
    """
    accepted = text("AUTH_AUDIENCE")
    return not accepted or app_client is None or app_client in [name.strip() for name in accepted.split(",")]


def provider() -> str:
    """One of PROVIDERS. Raises SettingsError for a combination that would not verify tokens."""
    name = text("AUTH_PROVIDER")
    if name not in PROVIDERS:
        raise SettingsError(f"AUTH_PROVIDER is {name!r}: use one of {', '.join(PROVIDERS)}")
    if name == "cognito":
        _refuse_claim_names()
    elif on_lambda():
        raise SettingsError(
            f"AUTH_PROVIDER is {name!r}, but on Lambda API Gateway verifies tokens, and only Cognito's: "
            "unset it, or run the API on another host"
        )
    return name


def _refuse_claim_names() -> None:
    for variable in ("AUTH_TENANT_CLAIM", "AUTH_USER_CLAIM", "AUTH_EMAIL_CLAIM"):
        if text(variable):
            raise SettingsError(
                f"{variable} is set, but the names of Cognito's claims are fixed: "
                "unset it, or set AUTH_PROVIDER to another provider"
            )


def user_pool() -> tuple[str, str]:
    """Region and id of the Cognito user pool."""
    arn = required(
        "COGNITO_USER_POOL_ARN",
        "the ARN of the user pool whose tokens are accepted (AUTH_PROVIDER names other issuers than Cognito)",
    )
    match = _USER_POOL_ARN.fullmatch(arn)
    if not match:
        raise SettingsError(
            f"COGNITO_USER_POOL_ARN is {arn!r}: it should look like "
            "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
        )
    return match[1], match[2]


def _names(variable: str, default: tuple[str, ...]) -> tuple[str, ...]:
    return comma_separated(variable, "the name of the claim") if text(variable) else default
