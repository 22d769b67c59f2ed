"""DATABASE_URL and the DB_ variables: where the database is, and how connections to it are used."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chalicelib.settings.database_tls import with_tls
from chalicelib.settings.environment import SettingsError, required, switch, whole_number

if TYPE_CHECKING:
    from chalicelib.settings.secret_stores import Reference

PGBOUNCERS_PORT = 6432
_POOLERS_NAME = re.compile(r"\.proxy-\w+\.[\w-]+\.rds\.|[-.]pooler\.")
"""RDS Proxy's endpoints, and those of poolers that say so: Neon's, Supabase's."""
_PORTS = re.compile(r"[0-9,]*")
_LIKE_A_REFERENCE = re.compile(
    r"""[\s"']*(?:(?P<aws>arn:|{{resolve:)|(?P<azure>https?://|[\w-]+\.vault\.azure\.|@microsoft\.keyvault)"""
    r"|(?P<google>projects/|//secretmanager\.)|(?P<oci>ocid1\.))",
    re.IGNORECASE,
)
_LATER = "in-the-secret"
_NAMED_LATER = dict.fromkeys(["DB_HOST", "DB_NAME", "DB_USER"], _LATER)


@dataclass(frozen=True)
class DatabaseSettings:
    """Where the database is, and how many connections one process may hold."""

    connect: dict[str, Any] = field(repr=False)
    """Arguments for psycopg2.connect; empty with a secret: then connect_arguments(secret) has them."""
    pool_idle: int
    pool_most: int
    pool_recycle: int
    """Seconds after which a connection is replaced."""
    pool_timeout: int
    """Seconds that a request waits for a connection when all are in use."""
    read_timeout: int = 8
    """Seconds that an answer is waited for."""
    unsafe_role: bool = False
    """Whether a role is taken that row-level security does not bind."""
    prepare: bool | None = None
    """Whether connections keep prepared statements; None: unless the address is a pooler's."""
    secret: "Reference | None" = None
    """Where DB_PASSWORD is, when it is not the password itself."""
    secret_lifetime: int = 0
    """Seconds after which the secret is fetched again."""

    def prepares(self, host: str | None, port: int) -> bool:
        """Whether a connection to this address keeps prepared statements."""
        is_poolers = port == PGBOUNCERS_PORT or _POOLERS_NAME.search(host or "")
        return not is_poolers if self.prepare is None else self.prepare


def database_settings() -> DatabaseSettings:
    """Read DATABASE_URL, or DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD, and how they are used."""
    idle = whole_number("DB_POOL_SIZE", 5, least=1)
    secret = _reference()
    named_later = {name: later for name, later in _NAMED_LATER.items() if not os.environ.get(name)}
    parameters = connect_arguments(named_later if secret else {})
    return DatabaseSettings(
        connect={} if secret else parameters,
        pool_idle=idle,
        pool_most=whole_number("DB_POOL_MAX", max(25, idle), least=idle),
        pool_recycle=whole_number("DB_POOL_RECYCLE", 300, least=1),
        pool_timeout=whole_number("DB_POOL_TIMEOUT", 3, least=1),
        read_timeout=whole_number("DB_READ_TIMEOUT", 8, least=1),
        unsafe_role=_unsafe_role_is_allowed(),
        prepare=switch("DB_PREPARE"),
        secret=secret,
        secret_lifetime=whole_number("DB_SECRET_LIFETIME", 900, least=60),
    )


def connect_arguments(secret: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for psycopg2.connect; what a secret says goes before the variables of the same names."""
    variables = {**os.environ, **secret}
    if url := variables.get("DATABASE_URL"):
        parameters = parse_database_url(url)
    else:
        hint = "or set DATABASE_URL=postgresql://user:password@host:5432/name"
        parameters = {
            "host": _hosts(required("DB_HOST", f"the database's host name, or several; {hint}", variables)),
            "port": _ports(variables),
            "dbname": required("DB_NAME", f"the database's name; {hint}", variables),
            "user": required("DB_USER", f"the API's role, orders_app; {hint}", variables),
        }
        if password := variables.get("DB_PASSWORD"):
            parameters["password"] = password
        parameters = with_tls(parameters)
    if "," in parameters.get("host", ""):
        # Of several servers only the primary takes orders; libpq asks each which it is while it connects.
        parameters = {"target_session_attrs": "read-write", **parameters}
    return {
        "application_name": "order-api",
        # For what forgets silent connections on the way: a NAT, a load balancer (Azure's after four minutes).
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        **parameters,
        "client_encoding": "UTF8",
        "connect_timeout": whole_number("DB_CONNECT_TIMEOUT", 3, least=2),
    }


def parse_database_url(url: str, name: str = "DATABASE_URL") -> dict[str, Any]:
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
    return with_tls(parameters)


def _reference() -> "Reference | None":
    """What DB_PASSWORD refers to. What only looks like a reference is never taken for a password."""
    password = os.environ.get("DB_PASSWORD", "")
    like = _LIKE_A_REFERENCE.match(password)
    if not like or os.environ.get("DATABASE_URL"):
        return None
    from chalicelib.settings import secret_stores as stores

    return stores.reference(str(like.lastgroup), password)


def _hosts(names: str) -> str:
    """Names alone, for libpq's messages quote them."""
    if "://" in names or any("@" in each[1:] for each in names.split(",")):
        raise SettingsError(
            "DB_HOST is more than a host name such as db.example, or several with commas: set DB_USER and "
            "DB_PASSWORD by themselves, or a whole URL as DATABASE_URL"
        )
    return names


def _ports(variables: Mapping[str, str]) -> str:
    """One port for all hosts, or one for each, as libpq takes them."""
    ports = variables.get("DB_PORT") or "5432"
    hosts = variables["DB_HOST"].split(",")
    numbers = ports.split(",")
    fits = len(numbers) in (1, len(hosts)) or hosts == [_LATER]
    if not fits or not all(each.isascii() and each.isdigit() and 1 <= int(each) <= 65535 for each in numbers):
        raise SettingsError(
            f"DB_PORT is {ports!r}: use a whole number from 1 to 65535"
            + (", or as many as DB_HOST has hosts, comma-separated" if len(hosts) > 1 else "")
        )
    return ports


def _unsafe_role_is_allowed() -> bool:
    value = os.environ.get("DB_ALLOW_UNSAFE_ROLE", "")
    if value not in ("", "0", "1"):
        raise SettingsError(f"DB_ALLOW_UNSAFE_ROLE is {value!r}: use 1 for an experiment, or leave it unset")
    return value == "1"
