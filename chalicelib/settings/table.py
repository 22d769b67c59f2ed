"""Every environment variable that the API reads; docs/configuration.md and the deploys are made from it.

To add one: an entry here and its reader in this package; then `make docs`.
"""

from typing import NamedTuple

EVERY_HOST = "every host"
OTHER_HOSTS = "every host but Lambda"
OPENTELEMETRY = "OpenTelemetry's SDK; not on Lambda"
LAMBDA = "Lambda, which sets it"
BUILD = "the build; never handed on"


class Setting(NamedTuple):
    """One environment variable. An empty one counts as unset."""

    name: str
    meaning: str
    """Markdown for docs/configuration.md, with links relative to docs/."""
    default: str = ""
    """The value when unset, as text; empty when there is none or when it depends on other variables."""
    read_by: str = EVERY_HOST
    """EVERY_HOST: all deploys hand it on. OTHER_HOSTS, OPENTELEMETRY: all but AWS's. Else: none does."""
    note: str = ""
    """What docs/configuration.md shows for a default that depends on other variables."""
    parameter: str = ""
    """The parameter of the SAM template that carries the value; empty: it is fixed in the build."""


_DATABASE = (
    Setting(
        "DATABASE_URL",
        "`postgresql://orders_app:password@host:5432/orders`, instead of `DB_HOST` to `DB_PASSWORD`.",
        read_by=OTHER_HOSTS,
    ),
    Setting(
        "DB_HOST",
        "Host name; several, comma-separated: [the primary among them](database.md#failover).",
        note="required without `DATABASE_URL`",
        parameter="DBHost",
    ),
    Setting(
        "DB_PORT",
        "Port, or one for each host of `DB_HOST`, comma-separated.",
        default="5432",
        parameter="DBPort",
    ),
    Setting("DB_NAME", "Name of the database.", note="required without `DATABASE_URL`", parameter="DBName"),
    Setting(
        "DB_USER", "The API's role, `orders_app`.", note="required without `DATABASE_URL`", parameter="DBUser"
    ),
    Setting(
        "DB_PASSWORD",
        "The password, or a reference into a cloud's secret store: [secrets.md](secrets.md).",
        parameter="DBPasswordSecretArn",
    ),
    Setting(
        "DB_SECRET_LIFETIME",
        "Seconds after which a password from a secret store is fetched again.",
        default="900",
    ),
    Setting(
        "DB_SSLMODE",
        "libpq's `sslmode`.",
        note="`require`; with an authority `verify-full`; none for a local host",
    ),
    Setting(
        "DB_SSLROOTCERT",
        "PEM file of the database's authority; builds copy it: [security.md](security.md#what-you-must-do).",
        read_by=BUILD,
        note="the build's file, if it has one",
    ),
    Setting("DB_CONNECT_TIMEOUT", "Seconds to connect, for each address of the host.", default="3"),
    Setting("DB_POOL_SIZE", "Connections that a process keeps idle.", default="5"),
    Setting("DB_POOL_MAX", "Most connections of a process; at least `DB_POOL_SIZE`.", default="25"),
    Setting("DB_POOL_RECYCLE", "Seconds after which a connection is replaced.", default="300"),
    Setting("DB_POOL_TIMEOUT", "Seconds that a request waits for a free connection.", default="3"),
    Setting(
        "DB_READ_TIMEOUT",
        "Seconds to wait for the database's answer: [limits in time](database.md#limits-in-time).",
        default="8",
    ),
    Setting(
        "DB_PREPARE",
        "`on`: connections keep [prepared statements](database.md).",
        note="`on`; `off` at a pooler's address",
    ),
    Setting(
        "DB_ALLOW_UNSAFE_ROLE", "`1` accepts a role that row-level security does not bind; for experiments."
    ),
)
_TOKENS = (
    Setting(
        "AUTH_PROVIDER",
        "`cognito`, `entra`, `firebase` or `oidc`: [identity.md](identity.md). On Lambda `cognito` only.",
        default="cognito",
        read_by=OTHER_HOSTS,
    ),
    Setting(
        "COGNITO_USER_POOL_ARN",
        "The user pool whose tokens are accepted.",
        note="required for `cognito`",
        parameter="CognitoUserPoolArn",
    ),
    Setting(
        "AUTH_AUDIENCE",
        "Accepted app client ids or audiences, comma-separated; for `firebase` the project.",
        note="required; on Lambda all clients of the pool",
    ),
    Setting(
        "AUTH_ISSUER",
        "The tokens' `iss`. Required for `oidc` and `entra`.",
        read_by=OTHER_HOSTS,
        note="Cognito's, Firebase's own",
    ),
    Setting(
        "AUTH_JWKS_URL",
        "Address of the issuer's key set. Required for `oidc`.",
        read_by=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_TENANT_CLAIM",
        "Claim that names the tenant; not for `cognito`.",
        read_by=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_USER_CLAIM",
        "Claim that names the user; not for `cognito`.",
        read_by=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_EMAIL_CLAIM",
        "Claim with the user's e-mail address; not for `cognito`.",
        read_by=OTHER_HOSTS,
        note="the provider's own",
    ),
)
_REQUESTS = (
    Setting(
        "RATE_LIMIT",
        "Requests of a tenant per second, minute or hour (`100/s`): [rate limits](database.md#rate-limits).",
        note="no limit",
    ),
    Setting("DEFAULT_CURRENCY", "ISO 4217 code of the currency of orders that name none.", default="USD"),
    Setting(
        "CORS_ORIGIN",
        "`*` or one origin that browsers may call from. On AWS fixed by the build.",
        default="*",
    ),
    Setting(
        "BASE_PATH",
        "Path that a gateway in front puts before every path, such as `/shop`. API Gateway removes its own.",
        read_by=OTHER_HOSTS,
    ),
    Setting("DOCS", "`on` serves `/openapi.json`.", default="off"),
)
_METRICS = (
    Setting(
        "OTEL_METRICS_EXPORTER",
        "`otlp` sends [metrics](operations.md#metrics), `none` does not.",
        read_by=OTHER_HOSTS,
        note="`otlp` with an endpoint",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "Where metrics go, by OTLP over HTTP: [metrics](operations.md#metrics).",
        read_by=OTHER_HOSTS,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "The same with its whole path; takes precedence.",
        read_by=OTHER_HOSTS,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "Headers for the collector; may hold a credential.",
        read_by=OPENTELEMETRY,
    ),
    Setting("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "The same, for metrics only.", read_by=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_TIMEOUT", "Seconds for an export.", read_by=OPENTELEMETRY, note="10"),
    Setting("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "The same, for metrics only.", read_by=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_COMPRESSION", "Such as `gzip`.", read_by=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "The same, for metrics only.", read_by=OPENTELEMETRY),
    Setting(
        "OTEL_EXPORTER_OTLP_CERTIFICATE", "PEM file of the collector's authority.", read_by=OPENTELEMETRY
    ),
    Setting("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "The same, for metrics only.", read_by=OPENTELEMETRY),
    Setting(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "Such as `delta`.",
        read_by=OPENTELEMETRY,
        note="`cumulative`",
    ),
    Setting(
        "OTEL_METRIC_EXPORT_INTERVAL", "Milliseconds between exports.", read_by=OPENTELEMETRY, note="60000"
    ),
    Setting("OTEL_METRIC_EXPORT_TIMEOUT", "Milliseconds for an export.", read_by=OPENTELEMETRY, note="30000"),
    Setting(
        "OTEL_RESOURCE_ATTRIBUTES", "Attributes of all metrics, as `name=value,...`.", read_by=OPENTELEMETRY
    ),
    Setting("OTEL_SERVICE_NAME", "The attribute `service.name`.", read_by=OPENTELEMETRY, note="`order-api`"),
)
_LAMBDA = (
    Setting(
        "AWS_LAMBDA_FUNCTION_NAME",
        "Its presence means that API Gateway verified the claims. Nothing else may set it.",
        read_by=LAMBDA,
    ),
    Setting(
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "`snap-start`: Lambda takes a snapshot of the process: [SnapStart](aws.md#snapstart).",
        read_by=LAMBDA,
    ),
)
SETTINGS = {
    setting.name: setting for group in (_DATABASE, _TOKENS, _REQUESTS, _METRICS, _LAMBDA) for setting in group
}
