"""AUTH_ISSUER, AUTH_AUDIENCE, AUTH_JWKS_URL: the tokens to accept where no gateway verifies them."""

import re
from dataclasses import dataclass

from chalicelib.settings.environment import SettingsError, comma_separated, required, text
from chalicelib.settings.identity_provider import claim_names, provider, user_pool

ANY_DIRECTORY = "{tenantid}"
"""In AUTH_ISSUER the placeholder for an Entra token's directory, as in Microsoft's metadata."""
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY_SERVER = re.compile(
    r"https://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\])(:\d+)?([/?]\S*)?|http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?(/\S*)?"
)
"""https unless the host is this machine: on http an attacker in the network could replace the keys."""


@dataclass(frozen=True)
class AcceptedTokens:
    """What a token must have to be accepted where no gateway has verified it."""

    provider: str
    issuer: str
    """The value of `iss`; a template when ANY_DIRECTORY is in it."""
    audience: tuple[str, ...]
    jwks_url: str
    region: str = ""
    user_pool: str = ""


def accepted_tokens() -> AcceptedTokens:
    """What AUTH_PROVIDER and that provider's variables accept. Raises SettingsError."""
    claim_names()
    read = {"cognito": _cognito, "entra": _entra, "firebase": _firebase, "oidc": _oidc}[provider()]
    tokens = read()
    if not _KEY_SERVER.fullmatch(tokens.jwks_url):
        url = re.sub(r"//.*@", "//...@", tokens.jwks_url).partition("?")[0]  # no password, no signature
        raise SettingsError(
            f"AUTH_JWKS_URL is {url!r}: use the https address of the key set, without a login"
        )
    return tokens


def _cognito() -> AcceptedTokens:
    region, pool = user_pool()
    issuer = text("AUTH_ISSUER") or f"https://cognito-idp.{region}.amazonaws.com/{pool}"
    return AcceptedTokens(
        provider="cognito",
        issuer=issuer,
        audience=comma_separated(
            "AUTH_AUDIENCE", "the app client ids whose tokens are accepted, comma-separated"
        ),
        jwks_url=text("AUTH_JWKS_URL") or f"{issuer}/.well-known/jwks.json",
        region=region,
        user_pool=pool,
    )


def _entra() -> AcceptedTokens:
    example = f"https://login.microsoftonline.com/<directory id>/v2.0 ({ANY_DIRECTORY} for any directory)"
    issuer = required("AUTH_ISSUER", f"the issuer of your directory's tokens, {example}")
    if ANY_DIRECTORY not in issuer and not GUID.search(issuer):
        # Sign-in URLs accept `common`, `organizations` or a domain name, but a token's `iss` has the GUID.
        raise SettingsError(
            f"AUTH_ISSUER is {issuer!r}: it should hold the directory's GUID in lower case, {example}"
        )
    if ANY_DIRECTORY in issuer and text("AUTH_TENANT_CLAIM"):
        raise SettingsError(
            "AUTH_TENANT_CLAIM is set while AUTH_ISSUER takes any directory, whose administrators write "
            "claims of their own: unset it, or name one directory in AUTH_ISSUER"
        )
    keys = text("AUTH_JWKS_URL")
    if not keys and not issuer.endswith("/v2.0"):
        keys = required(
            "AUTH_JWKS_URL",
            "the jwks_uri that the issuer's .well-known/openid-configuration names; "
            "it is known only where AUTH_ISSUER ends with /v2.0",
        )
    directory = issuer.removesuffix("/v2.0").replace(ANY_DIRECTORY, "common")
    return AcceptedTokens(
        provider="entra",
        issuer=issuer,
        audience=comma_separated("AUTH_AUDIENCE", "the application (client) ids whose tokens are accepted"),
        jwks_url=keys or f"{directory}/discovery/v2.0/keys",
    )


def _firebase() -> AcceptedTokens:
    project, *others = comma_separated("AUTH_AUDIENCE", "the id of the Firebase or Google Cloud project")
    if others:
        raise SettingsError(f"AUTH_AUDIENCE is {text('AUTH_AUDIENCE')!r}: use the id of one project")
    keys = "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com"
    return AcceptedTokens(
        provider="firebase",
        issuer=text("AUTH_ISSUER") or f"https://securetoken.google.com/{project}",
        audience=(project,),
        jwks_url=text("AUTH_JWKS_URL") or keys,
    )


def _oidc() -> AcceptedTokens:
    return AcceptedTokens(
        provider="oidc",
        issuer=required("AUTH_ISSUER", "the issuer, exactly as its tokens' `iss` says"),
        audience=comma_separated(
            "AUTH_AUDIENCE", "the audiences (`aud`) of the tokens to accept, comma-separated"
        ),
        jwks_url=required(
            "AUTH_JWKS_URL",
            "the jwks_uri in the issuer's document at <AUTH_ISSUER>/.well-known/openid-configuration",
        ),
    )
