"""DATABASE_URL and the DB_ variables: where the database is, and how connections to it are used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chalicelib.settings.database_tls import with_tls
from chalicelib.settings.environment import NO_SECRET, SettingsError, required, switch, text, whole_number

if TYPE_CHECKING:
    from chalicelib.settings.secret_stores import Reference

_PGBOUNCER_PORT = 6432
_POOLER_NAME = re.compile(r"\.proxy-\w+\.[\w-]+\.rds\.|[-.]pooler\.")
"""Host names of RDS Proxy, and of Neon's and Supabase's poolers."""
_PORTS = re.compile(r"[0-9,]*")
_LIKE_A_REFERENCE = re.compile(
    r"""[\s"']*(?:(?P<aws>arn:|{{resolve:)|(?P<azure>https?://|[\w-]+\.vault\.azure\.|@microsoft\.keyvault)"""
    r"|(?P<google>projects/|//secretmanager\.)|(?P<oci>ocid1\.))",
    re.IGNORECASE,
)
_PLACEHOLDER = "in-the-secret"
_IN_THE_SECRET = ("DB_HOST", "DB_NAME", "DB_USER")
"""A secret may hold these besides the password; their values are known only after it is fetched."""


@dataclass(frozen=True)
class DatabaseSettings:
    """Where the database is, and how a process uses its connections."""

    connect: dict[str, Any] = field(repr=False)
    """Arguments for psycopg2.connect; empty with a secret: then connect_arguments(secret) has them."""
    pool_idle: int
    """Connections that are kept open when idle."""
    pool_max: int
    """The maximum number of open connections."""
    pool_recycle: int
    """Seconds after which a connection is replaced."""
    pool_timeout: int
    """Seconds that a request waits for a connection when all are in use."""
    read_timeout: int
    """Seconds that a request waits for an answer of the database."""
    unsafe_role: bool
    """Whether a role is accepted that row-level security does not bind."""
    prepare: bool | None
    """Whether connections keep prepared statements; None: unless the address is a pooler's."""
    secret: "Reference | None"
    """Where DB_PASSWORD is, when it is not the password itself."""
    secret_lifetime: int
    """Seconds after which the secret is fetched again."""

    def prepares(self, host: str | None, port: int) -> bool:
        """Whether a connection to this address keeps prepared statements."""
        if self.prepare is not None:
            return self.prepare
        return port != _PGBOUNCER_PORT and not _POOLER_NAME.search(host or "")


def database_settings() -> DatabaseSettings:
    """DATABASE_URL, or DB_HOST to DB_PASSWORD, and the pool. Raises SettingsError."""
    idle = whole_number("DB_POOL_SIZE", minimum=1)
    secret = _reference()
    placeholders = {name: _PLACEHOLDER for name in _IN_THE_SECRET if not text(name)}
    arguments = connect_arguments(placeholders if secret else NO_SECRET)  # also checks the variables
    return DatabaseSettings(
        connect={} if secret else arguments,
        pool_idle=idle,
        pool_max=whole_number("DB_POOL_MAX", minimum=idle),
        pool_recycle=whole_number("DB_POOL_RECYCLE", minimum=1),
        pool_timeout=whole_number("DB_POOL_TIMEOUT", minimum=1),
        read_timeout=whole_number("DB_READ_TIMEOUT", minimum=1),
        unsafe_role=_unsafe_role_is_allowed(),
        prepare=switch("DB_PREPARE"),
        secret=secret,
        secret_lifetime=whole_number("DB_SECRET_LIFETIME", minimum=60),
    )


def connect_arguments(secret: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for psycopg2.connect; `secret` overrides the variables of the same names."""
    url = text("DATABASE_URL", secret)
    parameters = parse_database_url(url) if url else with_tls(_separate_parameters(secret))
    if "," in parameters.get("host", ""):
        # Only the primary accepts orders: while connecting, libpq checks whether each server is writable.
        parameters = {"target_session_attrs": "read-write", **parameters}
    return {
        "application_name": "order-api",
        # NATs and load balancers drop idle connections without notice, Azure's after four minutes.
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        **parameters,
        "client_encoding": "UTF8",
        "connect_timeout": whole_number("DB_CONNECT_TIMEOUT", minimum=2),
    }


def parse_database_url(url: str, name: str = "DATABASE_URL") -> dict[str, str]:
    """libpq's parameters of a connection URL, the value of the variable `name`; TLS as with_tls adds it."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        parameters: dict[str, str] = parse_dsn(url.replace("postgresql+psycopg2://", "postgresql://", 1))
    except ProgrammingError:
        parameters = {}
    # A password with an unencoded @ or / would become part of host, port or name, which libpq logs.
    if (
        not parameters
        or not _PORTS.fullmatch(parameters.get("port", ""))
        or any("@" in host[1:] for host in parameters.get("host", "").split(","))
        or "@" in parameters.get("dbname", "")
    ):
        # Raised outside `except`: the cause's text would quote the URL and its password.
        raise SettingsError(
            f"{name} is not a connection URL: write postgresql://user:password@host:5432/name, "
            "with special characters of the password percent-encoded"
        )
    return with_tls(parameters)


def _reference() -> "Reference | None":
    """The secret that DB_PASSWORD refers to; None for a password.

    Raises SettingsError for a malformed reference, which would otherwise be sent as a password.
    """
    password = text("DB_PASSWORD")
    like = _LIKE_A_REFERENCE.match(password)
    if not like or text("DATABASE_URL"):
        return None
    from chalicelib.settings import secret_stores  # not needed for a plain password

    return secret_stores.reference(str(like.lastgroup), password)


def _separate_parameters(secret: Mapping[str, str]) -> dict[str, str]:
    """libpq's parameters of DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD."""
    hint = "or set DATABASE_URL=postgresql://user:password@host:5432/name"
    hosts = _hosts(required("DB_HOST", f"the database's host name, or several; {hint}", secret))
    parameters = {
        "host": hosts,
        "port": _ports(text("DB_PORT", secret), hosts.split(",")),
        "dbname": required("DB_NAME", f"the database's name; {hint}", secret),
        "user": required("DB_USER", f"the API's role, orders_app; {hint}", secret),
    }
    if password := text("DB_PASSWORD", secret):
        parameters["password"] = password
    return parameters


def _hosts(names: str) -> str:
    """Host names without a login, because libpq's messages quote them."""
    if "://" in names or any("@" in host[1:] for host in names.split(",")):
        raise SettingsError(
            "DB_HOST is more than a host name such as db.example, or several with commas: set DB_USER and "
            "DB_PASSWORD by themselves, or a whole URL as DATABASE_URL"
        )
    return names


def _ports(ports: str, hosts: list[str]) -> str:
    """One port for all hosts, or one for each, as libpq accepts them."""
    numbers = ports.split(",")
    fits = len(numbers) in (1, len(hosts)) or hosts == [_PLACEHOLDER]
    if not fits or not all(_is_port(number) for number in numbers):
        raise SettingsError(
            f"DB_PORT is {ports!r}: use a whole number from 1 to 65535"
            + (", or as many as DB_HOST has hosts, comma-separated" if len(hosts) > 1 else "")
        )
    return ports


def _is_port(number: str) -> bool:
    return number.isascii() and number.isdigit() and 1 <= int(number) <= 65535


def _unsafe_role_is_allowed() -> bool:
    value = text("DB_ALLOW_UNSAFE_ROLE")
    if value not in ("", "0", "1"):
        raise SettingsError(f"DB_ALLOW_UNSAFE_ROLE is {value!r}: use 1 for an experiment, or leave it unset")
    return value == "1"
