"""Every environment variable the API reads, checked, with errors that say how to set it."""

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from chalicelib.currencies import DECIMALS

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_USER_POOL_ARN = re.compile(r"arn:aws[a-z-]*:cognito-idp:([a-z0-9-]+):\d{12}:userpool/([\w-]+_[0-9a-zA-Z]+)")
_LOCAL_HOST = re.compile(r"|localhost|[/@].*|127\.\d+\.\d+\.\d+|::1")
_PORTS = re.compile(r"[0-9,]*")
_ORIGIN = re.compile(r"\*|https?://[^\s/,*]+")


class SettingsError(ValueError):
    """A variable is missing or malformed; the text says which, and what it should look like."""


@dataclass(frozen=True)
class Database:
    """Where the database is, and how many connections one process may hold."""

    connect: dict[str, Any]
    """Arguments for psycopg2.connect (libpq's connection parameters)."""
    pool_idle: int
    pool_most: int
    pool_recycle: int
    """Seconds after which a connection is replaced."""
    pool_timeout: int
    """Seconds that a request waits for a connection when all are in use."""


@dataclass(frozen=True)
class Tokens:
    """Whose tokens are accepted where no gateway has verified them."""

    region: str
    user_pool: str
    issuer: str
    audience: tuple[str, ...]
    jwks_url: str


def database() -> Database:
    """Read DATABASE_URL, or DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD, and the pool's limits."""
    idle = _whole("DB_POOL_SIZE", 5, least=1)
    return Database(
        connect=_connect(),
        pool_idle=idle,
        pool_most=_whole("DB_POOL_MAX", max(25, idle), least=idle),
        pool_recycle=_whole("DB_POOL_RECYCLE", 300, least=1),
        pool_timeout=_whole("DB_POOL_TIMEOUT", 3, least=1),
    )


def connection(url: str, name: str = "DATABASE_URL") -> dict[str, Any]:
    """libpq's parameters in a connection URL, the value of the variable `name`, with TLS where it is due."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        parameters: dict[str, Any] = parse_dsn(url.replace("postgresql+psycopg2://", "postgresql://", 1))
    except ProgrammingError:
        parameters = {}
    # A password with a bare @ or / ends up in the host, the port or the name, and so in libpq's messages.
    if (
        not parameters
        or not _PORTS.fullmatch(parameters.get("port", ""))
        or any("@" in host[1:] for host in parameters.get("host", "").split(","))
        or "@" in parameters.get("dbname", "")
    ):
        # Without the cause: its text quotes the URL, and so the password.
        raise SettingsError(
            f"{name} is not a connection URL: write postgresql://user:password@host:5432/name, "
            "with special characters of the password percent-encoded"
        )
    return _with_tls(parameters)


def tokens() -> Tokens:
    """Read COGNITO_USER_POOL_ARN and the AUTH_ variables that refine it."""
    region, user_pool = _user_pool()
    issuer = os.environ.get("AUTH_ISSUER") or f"https://cognito-idp.{region}.amazonaws.com/{user_pool}"
    meaning = "the app client ids whose tokens are accepted, comma-separated"
    audience = [client.strip() for client in _required("AUTH_AUDIENCE", meaning).split(",")]
    if not any(audience):
        raise SettingsError(f"AUTH_AUDIENCE is not set: {meaning}")
    return Tokens(
        region=region,
        user_pool=user_pool,
        issuer=issuer,
        audience=tuple(filter(None, audience)),
        jwks_url=os.environ.get("AUTH_JWKS_URL") or f"{issuer}/.well-known/jwks.json",
    )


def user_pool_arn() -> str:
    """The Cognito user pool of API Gateway's authorizer."""
    _user_pool()
    return os.environ["COGNITO_USER_POOL_ARN"]


def on_lambda() -> bool:
    """Whether API Gateway has verified the claims in the event.

    `chalice local` puts claims that nobody verified in the same place, so that there the variable
    alone would open the door; its module is in no deployment package.
    """
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "chalice.local" not in sys.modules


def cors_origin() -> str:
    """`*` or the one origin that browsers may call from."""
    origin = os.environ.get("CORS_ORIGIN") or "*"
    if not _ORIGIN.fullmatch(origin):
        raise SettingsError(f"CORS_ORIGIN is {origin!r}: use * or one origin such as https://shop.example")
    return origin


def default_currency() -> str:
    """The ISO 4217 code of an order that names none."""
    code = os.environ.get("DEFAULT_CURRENCY") or "USD"
    if code not in DECIMALS:
        raise SettingsError(f"DEFAULT_CURRENCY is {code!r}: use an ISO 4217 code such as USD or JPY")
    return code


def docs_are_on() -> bool:
    """Whether GET /openapi.json is served."""
    return os.environ.get("DOCS", "").lower() in ("on", "1", "true")


def _connect() -> dict[str, Any]:
    if url := os.environ.get("DATABASE_URL"):
        parameters = connection(url)
    else:
        hint = "or set DATABASE_URL=postgresql://user:password@host:5432/name"
        parameters = {
            "host": _required("DB_HOST", f"the database's host name; {hint}"),
            "port": _whole("DB_PORT", 5432, least=1, most=65535),
            "dbname": _required("DB_NAME", f"the database's name; {hint}"),
            "user": _required("DB_USER", f"the API's role, orders_app; {hint}"),
        }
        if password := os.environ.get("DB_PASSWORD"):
            parameters["password"] = password
        parameters = _with_tls(parameters)
    return {
        "application_name": "order-api",
        **parameters,
        "client_encoding": "UTF8",
        "connect_timeout": _whole("DB_CONNECT_TIMEOUT", 3, least=2),
    }


def _with_tls(parameters: dict[str, Any]) -> dict[str, Any]:
    """DB_SSLMODE, else what the parameters say, else `require` for any host that is not this machine."""
    mode = os.environ.get("DB_SSLMODE")
    if mode and mode not in SSL_MODES:
        raise SettingsError(f"DB_SSLMODE is {mode!r}: use one of {', '.join(SSL_MODES)}")
    if mode:
        return {**parameters, "sslmode": mode}
    if _is_local(parameters.get("host", "")) and _is_local(parameters.get("hostaddr", "")):
        return parameters
    return {"sslmode": "require", **parameters}


def _is_local(hosts: str) -> bool:
    """Sockets and loopback addresses only; of several hosts all must be."""
    return all(_LOCAL_HOST.fullmatch(host) for host in hosts.split(","))


def _user_pool() -> tuple[str, str]:
    arn = _required("COGNITO_USER_POOL_ARN", "the ARN of the user pool whose tokens are accepted")
    match = _USER_POOL_ARN.fullmatch(arn)
    if not match:
        raise SettingsError(
            f"COGNITO_USER_POOL_ARN is {arn!r}: it should look like "
            "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
        )
    return match[1], match[2]


def _required(name: str, meaning: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: {meaning}")
    return value


def _whole(name: str, default: int, *, least: int, most: int = 86_400) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingsError(f"{name} is {text!r}: use a whole number from {least} to {most}")
    return int(text)
