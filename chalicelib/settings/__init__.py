"""Every environment variable the API reads, checked, with errors that say how to set it."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chalicelib.money.currencies import DECIMALS

if TYPE_CHECKING:
    from chalicelib.settings.secret_stores import Reference

PROVIDERS = ("cognito", "entra", "firebase", "oidc")
ANY_DIRECTORY = "{tenantid}"
"""Stands in AUTH_ISSUER for the directory that an Entra token names, as in Microsoft's own metadata."""
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
BUILT_AUTHORITY = Path(__file__).parent.parent / "database-authority.pem"
"""Where a build puts the file that DB_SSLROOTCERT named on the machine that built it."""
_USER_POOL_ARN = re.compile(r"arn:aws[a-z-]*:cognito-idp:([a-z0-9-]+):\d{12}:userpool/([\w-]+_[0-9a-zA-Z]+)")
_LOCAL_HOST = re.compile(r"|localhost|[/@].*|127\.\d+\.\d+\.\d+|::1")
PGBOUNCERS_PORT = 6432
_POOLERS_NAME = re.compile(r"\.proxy-\w+\.[\w-]+\.rds\.|[-.]pooler\.")
"""RDS Proxy's endpoints, and those of poolers that say so: Neon's, Supabase's."""
_PORTS = re.compile(r"[0-9,]*")
_LIKE_A_REFERENCE = re.compile(
    r"""[\s"']*(?:(?P<aws>arn:|{{resolve:)|(?P<azure>https?://|[\w-]+\.vault\.azure\.|@microsoft\.keyvault)"""
    r"|(?P<google>projects/|//secretmanager\.)|(?P<oci>ocid1\.))",
    re.IGNORECASE,
)
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY_SERVER = re.compile(
    r"https://([^\s/?#@:]+|\[[0-9a-fA-F:.]+\])(:\d+)?([/?]\S*)?|http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?(/\S*)?"
)
"""Through TLS, unless it is this machine: whoever stands between could hand out keys of their own."""
_LATER = "in-the-secret"
_NAMED_LATER = dict.fromkeys(["DB_HOST", "DB_NAME", "DB_USER"], _LATER)
_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])")
_ORIGIN = re.compile(r"\*|https?://[^\s/,*]+")


class SettingsError(ValueError):
    """A variable is missing or malformed; the text says which, and what it should look like.

    It quotes no variable that may hold a secret: it is logged, on Lambda at the first request.
    """

    says_no_values = True


@dataclass(frozen=True)
class Database:
    """Where the database is, and how many connections one process may hold."""

    connect: dict[str, Any] = field(repr=False)
    """Arguments for psycopg2.connect (libpq's connection parameters); with a secret, login() has them."""
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


@dataclass(frozen=True)
class ClaimNames:
    """Where a token says who asks: alternatives, of which the first that is present counts.

    A name is a claim's own, dots and all, or else a dotted path into objects.
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


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds."""

    requests: int
    seconds: int

    @property
    def interval(self) -> float:
        """Seconds from one to the next, at an even pace."""
        return self.seconds / self.requests


@dataclass(frozen=True)
class Tokens:
    """Whose tokens are accepted where no gateway has verified them."""

    provider: str
    issuer: str
    """What `iss` must be; with ANY_DIRECTORY in it, a template."""
    audience: tuple[str, ...]
    jwks_url: str
    region: str = ""
    user_pool: str = ""


def database() -> Database:
    """Read DATABASE_URL, or DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD, and how they are used."""
    idle = _whole("DB_POOL_SIZE", 5, least=1)
    secret = _reference()
    named_later = {name: later for name, later in _NAMED_LATER.items() if not os.environ.get(name)}
    parameters = login(named_later if secret else {})
    return Database(
        connect={} if secret else parameters,
        pool_idle=idle,
        pool_most=_whole("DB_POOL_MAX", max(25, idle), least=idle),
        pool_recycle=_whole("DB_POOL_RECYCLE", 300, least=1),
        pool_timeout=_whole("DB_POOL_TIMEOUT", 3, least=1),
        read_timeout=_whole("DB_READ_TIMEOUT", 8, least=1),
        unsafe_role=_unsafe_role_is_allowed(),
        prepare=_switch("DB_PREPARE"),
        secret=secret,
        secret_lifetime=_whole("DB_SECRET_LIFETIME", 900, least=60),
    )


def login(secret: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for psycopg2.connect; what a secret says goes before the variables of the same names."""
    variables = {**os.environ, **secret}
    if url := variables.get("DATABASE_URL"):
        parameters = connection(url)
    else:
        hint = "or set DATABASE_URL=postgresql://user:password@host:5432/name"
        parameters = {
            "host": _hosts(_required("DB_HOST", f"the database's host name, or several; {hint}", variables)),
            "port": _ports(variables),
            "dbname": _required("DB_NAME", f"the database's name; {hint}", variables),
            "user": _required("DB_USER", f"the API's role, orders_app; {hint}", variables),
        }
        if password := variables.get("DB_PASSWORD"):
            parameters["password"] = password
        parameters = _with_tls(parameters)
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
        "connect_timeout": _whole("DB_CONNECT_TIMEOUT", 3, least=2),
    }


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


def authority() -> str:
    """The file with the certificates of the database's authority: DB_SSLROOTCERT, else the build's; or none.

    It is looked into, because libpq would complain of it to the log alone, at each connection.
    """
    path = os.environ.get("DB_SSLROOTCERT")
    if not path:
        return str(BUILT_AUTHORITY) if BUILT_AUTHORITY.exists() else ""
    try:
        fault = "" if b"-----BEGIN CERTIFICATE-----" in Path(path).read_bytes() else "it holds no certificate"
    except OSError as error:
        fault = error.strerror or "it cannot be read"
    if fault:
        raise SettingsError(
            f"DB_SSLROOTCERT is {path!r}: {fault}. Use a PEM file (-----BEGIN CERTIFICATE-----) with the "
            "certificates of the authority that vouches for the database, or leave it unset"
        )
    return path


def tokens() -> Tokens:
    """Read AUTH_PROVIDER and the variables of that provider."""
    claim_names()
    read = {"cognito": _cognito, "entra": _entra, "firebase": _firebase, "oidc": _oidc}[_provider()]
    found = read()
    if not _KEY_SERVER.fullmatch(found.jwks_url):
        url = re.sub(r"//.*@", "//...@", found.jwks_url).partition("?")[0]  # no password, no signature
        raise SettingsError(
            f"AUTH_JWKS_URL is {url!r}: use the https address of the key set, without a login"
        )
    return found


def claim_names() -> ClaimNames:
    """The provider's, or those in AUTH_TENANT_CLAIM, AUTH_USER_CLAIM and AUTH_EMAIL_CLAIM."""
    default = _NAMES[_provider()]
    return ClaimNames(
        tenant=_names("AUTH_TENANT_CLAIM", default.tenant),
        user=_names("AUTH_USER_CLAIM", default.user),
        email=_names("AUTH_EMAIL_CLAIM", default.email),
    )


def user_pools() -> list[str]:
    """The Cognito user pools of API Gateway's authorizer; none when another provider is configured."""
    if _provider() != "cognito":
        return []
    _user_pool()
    return [os.environ["COGNITO_USER_POOL_ARN"]]


def is_accepted_client(app_client: object) -> bool:
    """Whether AUTH_AUDIENCE, where it is set, names the `aud` of a token that API Gateway verified.

    API Gateway takes the ID tokens of every app client of the pool; each of them names its client.
    """
    accepted = os.environ.get("AUTH_AUDIENCE", "")
    return not accepted or app_client is None or app_client in [each.strip() for each in accepted.split(",")]


def on_lambda() -> bool:
    """Whether API Gateway has verified the claims in the event.

    `chalice local` puts claims that nobody verified in the same place, so that there the variable
    alone would open the door; its module is in no deployment package.
    """
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "chalice.local" not in sys.modules


def function_name() -> str:
    """Lambda's name of this function."""
    return os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "")


def is_snapshotted() -> bool:
    """Whether Lambda will take a snapshot of this process and start instances from it."""
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"


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


def rate_limit() -> Rate | None:
    """How many requests each tenant may make; None: as many as it likes."""
    text = os.environ.get("RATE_LIMIT")
    if not text:
        return None
    match = _RATE.fullmatch(text)
    if not match:
        raise SettingsError(f"RATE_LIMIT is {text!r}: use requests per second, minute or hour, such as 100/s")
    return Rate(int(match[1]), {"s": 1, "m": 60, "h": 3600}[match[2]])


def base_path() -> str:
    """What a gateway in front puts before every path, such as `/shop`; cut off before routing."""
    path = os.environ.get("BASE_PATH", "").rstrip("/")
    if not _BASE_PATH.fullmatch(path):
        raise SettingsError(f"BASE_PATH is {path!r}: use a path such as /shop, or leave it unset")
    return path


def check() -> None:
    """Read everything that a host without API Gateway needs. Raises SettingsError."""
    tokens()
    database()
    default_currency()
    base_path()
    rate_limit()
    metrics_are_exported()


def metrics_are_exported() -> bool:
    """Whether OpenTelemetry is to send metrics; where to, its SDK reads by itself. Never on Lambda."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    has_endpoint = any(os.environ.get(name) for name in endpoints)
    exporter = os.environ.get("OTEL_METRICS_EXPORTER") or ("otlp" if has_endpoint else "none")
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"OTEL_METRICS_EXPORTER is {exporter!r}: use otlp or none")
    return exporter == "otlp" and not on_lambda()


def docs_are_on() -> bool:
    """Whether GET /openapi.json is served."""
    return os.environ.get("DOCS", "").lower() in ("on", "1", "true")


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


def _with_tls(parameters: dict[str, Any]) -> dict[str, Any]:
    """With the authority that is known, and DB_SSLMODE, else what the parameters say.

    Else, for any host that is not this machine, `verify-full`, and `require` where no authority is known.
    """
    mode = os.environ.get("DB_SSLMODE")
    if mode and mode not in SSL_MODES:
        raise SettingsError(f"DB_SSLMODE is {mode!r}: use one of {', '.join(SSL_MODES)}")
    mode = mode or parameters.get("sslmode")
    if not mode and _is_local(parameters.get("host", "")) and _is_local(parameters.get("hostaddr", "")):
        return parameters
    known = parameters.get("sslrootcert") or authority()
    mode = mode or ("verify-full" if known else "require")
    return {**parameters, "sslmode": mode, **({"sslrootcert": known} if known else {})}


def _is_local(hosts: str) -> bool:
    """Sockets and loopback addresses only; of several hosts all must be."""
    return all(_LOCAL_HOST.fullmatch(host) for host in hosts.split(","))


def _provider() -> str:
    provider = os.environ.get("AUTH_PROVIDER") or "cognito"
    if provider not in PROVIDERS:
        raise SettingsError(f"AUTH_PROVIDER is {provider!r}: use one of {', '.join(PROVIDERS)}")
    if provider == "cognito":
        for name in ("AUTH_TENANT_CLAIM", "AUTH_USER_CLAIM", "AUTH_EMAIL_CLAIM"):
            if os.environ.get(name):
                raise SettingsError(
                    f"{name} is set, but the names of Cognito's claims are fixed: "
                    "unset it, or set AUTH_PROVIDER to another provider"
                )
    elif on_lambda():
        raise SettingsError(
            f"AUTH_PROVIDER is {provider!r}, but on Lambda API Gateway verifies tokens, and only Cognito's: "
            "unset it, or run the API on another host"
        )
    return provider


def _cognito() -> Tokens:
    region, user_pool = _user_pool()
    issuer = os.environ.get("AUTH_ISSUER") or f"https://cognito-idp.{region}.amazonaws.com/{user_pool}"
    return Tokens(
        provider="cognito",
        issuer=issuer,
        audience=_listed("AUTH_AUDIENCE", "the app client ids whose tokens are accepted, comma-separated"),
        jwks_url=os.environ.get("AUTH_JWKS_URL") or f"{issuer}/.well-known/jwks.json",
        region=region,
        user_pool=user_pool,
    )


def _entra() -> Tokens:
    example = f"https://login.microsoftonline.com/<directory id>/v2.0 ({ANY_DIRECTORY} for any directory)"
    issuer = _required("AUTH_ISSUER", f"the issuer of your directory's tokens, {example}")
    if ANY_DIRECTORY not in issuer and not GUID.search(issuer):
        # Where sign-in says `common`, `organizations` or a domain name, no token does.
        raise SettingsError(
            f"AUTH_ISSUER is {issuer!r}: it should hold the directory's GUID in lower case, {example}"
        )
    if ANY_DIRECTORY in issuer and os.environ.get("AUTH_TENANT_CLAIM"):
        raise SettingsError(
            "AUTH_TENANT_CLAIM is set while AUTH_ISSUER takes any directory, whose administrators write "
            "claims of their own: unset it, or name one directory in AUTH_ISSUER"
        )
    keys = os.environ.get("AUTH_JWKS_URL")
    if not keys and not issuer.endswith("/v2.0"):
        keys = _required(
            "AUTH_JWKS_URL",
            "the jwks_uri that the issuer's .well-known/openid-configuration names; "
            "it is known only where AUTH_ISSUER ends with /v2.0",
        )
    directory = issuer.removesuffix("/v2.0").replace(ANY_DIRECTORY, "common")
    return Tokens(
        provider="entra",
        issuer=issuer,
        audience=_listed("AUTH_AUDIENCE", "the application (client) ids whose tokens are accepted"),
        jwks_url=keys or f"{directory}/discovery/v2.0/keys",
    )


def _firebase() -> Tokens:
    project, *others = _listed("AUTH_AUDIENCE", "the id of the Firebase or Google Cloud project")
    if others:
        raise SettingsError(f"AUTH_AUDIENCE is {os.environ['AUTH_AUDIENCE']!r}: use the id of one project")
    keys = "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com"
    return Tokens(
        provider="firebase",
        issuer=os.environ.get("AUTH_ISSUER") or f"https://securetoken.google.com/{project}",
        audience=(project,),
        jwks_url=os.environ.get("AUTH_JWKS_URL") or keys,
    )


def _oidc() -> Tokens:
    return Tokens(
        provider="oidc",
        issuer=_required("AUTH_ISSUER", "the issuer, exactly as its tokens' `iss` says"),
        audience=_listed("AUTH_AUDIENCE", "the audiences (`aud`) of the tokens to accept, comma-separated"),
        jwks_url=_required(
            "AUTH_JWKS_URL",
            "the jwks_uri in the issuer's document at <AUTH_ISSUER>/.well-known/openid-configuration",
        ),
    )


def _names(variable: str, default: tuple[str, ...]) -> tuple[str, ...]:
    return _listed(variable, "the name of the claim") if os.environ.get(variable) else default


def _listed(name: str, meaning: str) -> tuple[str, ...]:
    """The members of a comma-separated list, of which there must be one."""
    members = tuple(filter(None, (member.strip() for member in _required(name, meaning).split(","))))
    if not members:
        raise SettingsError(f"{name} is not set: {meaning}")
    return members


def _user_pool() -> tuple[str, str]:
    arn = _required(
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


def _switch(name: str) -> bool | None:
    value = os.environ.get(name)
    if value and value not in ("on", "off"):
        raise SettingsError(f"{name} is {value!r}: use on or off")
    return value == "on" if value else None


def _required(name: str, meaning: str, variables: Mapping[str, str] = os.environ) -> str:
    value = variables.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: {meaning}")
    return value


def _whole(name: str, default: int, *, least: int, most: int = 86_400) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingsError(f"{name} is {text!r}: use a whole number from {least} to {most}")
    return int(text)
