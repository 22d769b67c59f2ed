"""Every environment variable that the API reads; docs/configuration.md and the deploys are made from it.

To add one: an entry here and its reader in this package; then `make docs`.
"""

from typing import NamedTuple

from chalicelib.settings.parameter import Parameter

EVERY_HOST = "every host"
OTHER_HOSTS = "every host but Lambda"
OPENTELEMETRY = "every host but Lambda, for OpenTelemetry's SDK"
LAMBDA = "none: Lambda sets it"
BUILD = "none: builds copy the file"


class Setting(NamedTuple):
    """One environment variable. An empty one counts as unset."""

    name: str
    meaning: str
    """Markdown for docs/configuration.md, with links relative to docs/."""
    default: str = ""
    """The value when unset, as text; empty when there is none or when it depends on other variables."""
    passed_to: str = EVERY_HOST
    """The deployed functions that get it from the environment of the build or deploy command."""
    note: str = ""
    """What docs/configuration.md shows for a default that depends on other variables."""
    parameter: Parameter | None = None
    """None: on Lambda the value is fixed in the build."""


_DATABASE = (
    Setting(
        "DATABASE_URL",
        "`postgresql://orders_app:password@host:5432/orders`, instead of `DB_HOST` to `DB_PASSWORD`.",
        passed_to=OTHER_HOSTS,
    ),
    Setting(
        "DB_HOST",
        "Host name; several, comma-separated: [the primary among them](database.md#failover).",
        note="required without `DATABASE_URL`",
        parameter=Parameter("DBHost", "Host of PostgreSQL, or several; empty when the secret names it"),
    ),
    Setting(
        "DB_PORT",
        "Port, or one for each host of `DB_HOST`, comma-separated.",
        default="5432",
        parameter=Parameter("DBPort", "Port of PostgreSQL", "[0-9]{1,5}(,[0-9]{1,5})*"),
    ),
    Setting(
        "DB_NAME",
        "Name of the database.",
        note="required without `DATABASE_URL`",
        parameter=Parameter("DBName", "Name of the database; empty when the secret names it"),
    ),
    Setting(
        "DB_USER",
        "The API's role, `orders_app`.",
        note="required without `DATABASE_URL`",
        parameter=Parameter("DBUser", "The API's role; empty when the secret names it"),
    ),
    Setting(
        "DB_PASSWORD",
        "The password, or a reference into a cloud's secret store: [secrets.md](secrets.md).",
        parameter=Parameter(
            "DBPasswordSecretArn",
            "Secrets Manager secret with the password, or of RDS's JSON form",
            "(arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+)?",
        ),
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
        passed_to=BUILD,
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
        passed_to=OTHER_HOSTS,
    ),
    Setting(
        "COGNITO_USER_POOL_ARN",
        "The user pool whose tokens are accepted.",
        note="required for `cognito`",
        parameter=Parameter(
            "CognitoUserPoolArn",
            "The Cognito user pool whose ID tokens are accepted",
            "arn:aws[a-z-]*:cognito-idp:[a-z0-9-]+:[0-9]{12}:userpool/.+",
            is_required=True,
        ),
    ),
    Setting(
        "AUTH_AUDIENCE",
        "Accepted app client ids or audiences, comma-separated; for `firebase` the project.",
        note="required; on Lambda all clients of the pool",
    ),
    Setting(
        "AUTH_ISSUER",
        "The tokens' `iss`. Required for `oidc` and `entra`.",
        passed_to=OTHER_HOSTS,
        note="Cognito's, Firebase's own",
    ),
    Setting(
        "AUTH_JWKS_URL",
        "Address of the issuer's key set. Required for `oidc`.",
        passed_to=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_TENANT_CLAIM",
        "Claim that names the tenant; not for `cognito`.",
        passed_to=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_USER_CLAIM",
        "Claim that names the user; not for `cognito`.",
        passed_to=OTHER_HOSTS,
        note="the provider's own",
    ),
    Setting(
        "AUTH_EMAIL_CLAIM",
        "Claim with the user's e-mail address; not for `cognito`.",
        passed_to=OTHER_HOSTS,
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
        passed_to=OTHER_HOSTS,
    ),
    Setting("DOCS", "`on` serves `/openapi.json`.", default="off"),
)
_METRICS = (
    Setting(
        "OTEL_METRICS_EXPORTER",
        "`otlp` sends [metrics](operations.md#metrics), `none` does not.",
        passed_to=OTHER_HOSTS,
        note="`otlp` with an endpoint",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "Where metrics go, by OTLP over HTTP: [metrics](operations.md#metrics).",
        passed_to=OTHER_HOSTS,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "The same with its whole path; takes precedence.",
        passed_to=OTHER_HOSTS,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "Headers for the collector; may hold a credential.",
        passed_to=OPENTELEMETRY,
    ),
    Setting("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "The same, for metrics only.", passed_to=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_TIMEOUT", "Seconds for an export.", passed_to=OPENTELEMETRY, note="10"),
    Setting("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "The same, for metrics only.", passed_to=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_COMPRESSION", "Such as `gzip`.", passed_to=OPENTELEMETRY),
    Setting("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "The same, for metrics only.", passed_to=OPENTELEMETRY),
    Setting(
        "OTEL_EXPORTER_OTLP_CERTIFICATE", "PEM file of the collector's authority.", passed_to=OPENTELEMETRY
    ),
    Setting("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "The same, for metrics only.", passed_to=OPENTELEMETRY),
    Setting(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "Such as `delta`.",
        passed_to=OPENTELEMETRY,
        note="`cumulative`",
    ),
    Setting(
        "OTEL_METRIC_EXPORT_INTERVAL", "Milliseconds between exports.", passed_to=OPENTELEMETRY, note="60000"
    ),
    Setting(
        "OTEL_METRIC_EXPORT_TIMEOUT", "Milliseconds for an export.", passed_to=OPENTELEMETRY, note="30000"
    ),
    Setting(
        "OTEL_RESOURCE_ATTRIBUTES", "Attributes of all metrics, as `name=value,...`.", passed_to=OPENTELEMETRY
    ),
    Setting(
        "OTEL_SERVICE_NAME", "The attribute `service.name`.", passed_to=OPENTELEMETRY, note="`order-api`"
    ),
)
_LAMBDA = (
    Setting(
        "AWS_LAMBDA_FUNCTION_NAME",
        "Its presence means that API Gateway verified the claims. Nothing else may set it.",
        passed_to=LAMBDA,
    ),
    Setting(
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "`snap-start`: Lambda takes a snapshot of the process: [SnapStart](aws.md#snapstart).",
        passed_to=LAMBDA,
    ),
)
SETTINGS = {
    setting.name: setting for group in (_DATABASE, _TOKENS, _REQUESTS, _METRICS, _LAMBDA) for setting in group
}
PASSED_TO_LAMBDA = [name for name, setting in SETTINGS.items() if setting.passed_to == EVERY_HOST]
PASSED_TO_OTHER_HOSTS = [
    name
    for name, setting in SETTINGS.items()
    if setting.passed_to in (EVERY_HOST, OTHER_HOSTS, OPENTELEMETRY)
]
