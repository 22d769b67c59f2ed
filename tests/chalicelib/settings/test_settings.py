"""Environment variables: their meaning, defaults, and the error for an invalid value."""

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib.composition import connections
from chalicelib.errors import Unavailable
from chalicelib.settings.aws_lambda import on_lambda
from chalicelib.settings.currency import default_currency
from chalicelib.settings.database import connect_arguments, database_settings, parse_database_url
from chalicelib.settings.database_tls import SSL_MODES
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.http import cors_origin, docs_are_on
from chalicelib.settings.identity_provider import user_pools
from chalicelib.settings.metrics import metrics_are_exported
from chalicelib.settings.rate_limit import rate_limit
from chalicelib.settings.table import OPENTELEMETRY, SETTINGS
from chalicelib.settings.tokens import accepted_tokens
from local.database import Urls
from tests.support.servers import api_on

SetVariables = Callable[..., None]
URL = "postgresql://orders_app:s3cret@db.example:5432/orders"
PARTS = {"DB_HOST": "db.example", "DB_NAME": "orders", "DB_USER": "orders_app"}
ARN = "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
VARIABLES = {name for name, setting in SETTINGS.items() if setting.passed_to != OPENTELEMETRY}


@pytest.fixture
def set_only(monkeypatch: pytest.MonkeyPatch) -> SetVariables:
    """Sets these variables and unsets all others."""

    def set_variables(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def error_text(read: Callable[[], Any]) -> str:
    """The error as an operator sees it, with its traceback."""
    with pytest.raises(SettingsError) as error:
        read()
    return "".join(traceback.format_exception(error.value))


def error_texts() -> Iterator[str]:
    readers: tuple[Callable[[], Any], ...] = (
        database_settings,
        accepted_tokens,
        user_pools,
        cors_origin,
        default_currency,
        rate_limit,
    )
    for read in readers:
        try:
            read()
        except SettingsError as error:
            yield "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("DB_HOST", "DATABASE_URL=postgresql://user:password@host:5432/name"),
        ("DB_NAME", "the database's name"),
        ("DB_USER", "orders_app"),
    ],
)
def test_missing_database_variable_is_explained(set_only: SetVariables, missing: str, hint: str) -> None:
    set_only(**{name: value for name, value in PARTS.items() if name != missing})

    text = error_text(database_settings)

    assert f"{missing} is not set" in text
    assert hint in text


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("DB_PORT", "none", "from 1 to 65535"),
        ("DB_PORT", "0", "from 1 to 65535"),
        ("DB_PORT", "65536", "from 1 to 65535"),
        ("DB_POOL_SIZE", "0", "from 1 to"),
        ("DB_POOL_SIZE", "5.0", "whole number"),
        ("DB_PREPARE", "yes", "use on or off"),
        ("DB_POOL_SIZE", "\u0665", "whole number"),
        ("DB_POOL_MAX", "4", "from 5 to"),
        ("DB_POOL_MAX", "-1", "whole number"),
        ("DB_POOL_RECYCLE", "soon", "whole number"),
        ("DB_POOL_TIMEOUT", "0", "from 1 to"),
        ("DB_SECRET_LIFETIME", "59", "from 60 to 86400"),
        ("DB_CONNECT_TIMEOUT", "1", "from 2 to"),
        ("DB_SSLMODE", "yes", "disable, allow, prefer, require, verify-ca, verify-full"),
    ],
)
def test_malformed_database_variable_is_explained(
    set_only: SetVariables, name: str, value: str, hint: str
) -> None:
    set_only(**{**PARTS, name: value})

    text = error_text(database_settings)

    assert f"{name} is {value!r}" in text
    assert hint in text


@pytest.mark.parametrize(
    ("name", "value", "read", "hint"),
    [
        ("COGNITO_USER_POOL_ARN", "eu-west-1_AbCdEfGhI", accepted_tokens, "arn:aws:cognito-idp:eu-west-1:"),
        ("COGNITO_USER_POOL_ARN", ARN + "/x", user_pools, "arn:aws:cognito-idp:eu-west-1:"),
        ("CORS_ORIGIN", "shop.example", cors_origin, "https://shop.example"),
        ("CORS_ORIGIN", "https://a.example,https://b.example", cors_origin, "one origin"),
        ("CORS_ORIGIN", "https://shop.example/", cors_origin, "https://shop.example"),
        ("CORS_ORIGIN", "https://shop.example\nX: y", cors_origin, "one origin"),
        ("DEFAULT_CURRENCY", "usd", default_currency, "such as USD"),
        ("DEFAULT_CURRENCY", "XXX", default_currency, "ISO 4217"),
        ("OTEL_METRICS_EXPORTER", "prometheus", metrics_are_exported, "otlp or none"),
    ],
)
def test_malformed_variable_is_explained(
    set_only: SetVariables, name: str, value: str, read: Callable[[], Any], hint: str
) -> None:
    set_only(**{name: value})

    text = error_text(read)

    assert f"{name} is {value!r}" in text
    assert hint in text


@pytest.mark.parametrize(
    ("given", "missing", "read"),
    [
        ({}, "COGNITO_USER_POOL_ARN", user_pools),
        ({}, "COGNITO_USER_POOL_ARN", accepted_tokens),
        ({"COGNITO_USER_POOL_ARN": ARN}, "AUTH_AUDIENCE", accepted_tokens),
        ({"COGNITO_USER_POOL_ARN": ARN, "AUTH_AUDIENCE": " , "}, "AUTH_AUDIENCE", accepted_tokens),
    ],
)
def test_missing_token_variable_is_explained(
    set_only: SetVariables, given: dict[str, str], missing: str, read: Callable[[], Any]
) -> None:
    set_only(**given)

    assert f"{missing} is not set: the " in error_text(read)


def test_issuer_and_key_url_default_to_cognito(set_only: SetVariables) -> None:
    set_only(COGNITO_USER_POOL_ARN=ARN, AUTH_AUDIENCE="web, mobile,")

    tokens = accepted_tokens()

    assert (tokens.region, tokens.user_pool) == ("eu-west-1", "eu-west-1_AbCdEfGhI")
    assert tokens.issuer == "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"
    assert tokens.jwks_url == f"{tokens.issuer}/.well-known/jwks.json"
    assert tokens.audience == ("web", "mobile")


def test_issuer_and_key_url_can_be_overridden(set_only: SetVariables) -> None:
    other_url = {"AUTH_ISSUER": "https://id.example", "AUTH_JWKS_URL": "https://keys.example/jwks"}
    set_only(COGNITO_USER_POOL_ARN=ARN, AUTH_AUDIENCE="web", **other_url)

    tokens = accepted_tokens()

    assert {"AUTH_ISSUER": tokens.issuer, "AUTH_JWKS_URL": tokens.jwks_url} == other_url


def test_empty_variable_counts_as_unset(set_only: SetVariables) -> None:
    set_only(**{**dict.fromkeys(VARIABLES - {"AWS_LAMBDA_FUNCTION_NAME"}, ""), **PARTS})

    assert database_settings().connect["port"] == "5432"
    assert cors_origin() == "*"
    assert default_currency() == "USD"
    assert not docs_are_on()


@pytest.mark.parametrize(("value", "served"), [("on", True), ("1", True), ("TRUE", True), ("off", False)])
def test_docs_variable_switches_docs_on(set_only: SetVariables, value: str, served: bool) -> None:
    set_only(DOCS=value)

    assert docs_are_on() is served


@pytest.mark.parametrize(
    ("variables", "exported"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://collector.example/v1/metrics"}, True),
        (
            {
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://collector.example/v1/metrics",
                "OTEL_METRICS_EXPORTER": "none",
            },
            False,
        ),
    ],
)
def test_either_otlp_endpoint_enables_metrics(
    set_only: SetVariables, variables: dict[str, str], exported: bool
) -> None:
    set_only(**variables)

    assert metrics_are_exported() is exported


@pytest.mark.parametrize("origin", ["*", "https://shop.example", "http://localhost:3000"])
def test_cors_origin_is_used_unchanged(set_only: SetVariables, origin: str) -> None:
    set_only(CORS_ORIGIN=origin)

    assert cors_origin() == origin


def test_lambda_is_detected_except_under_chalice_local(set_only: SetVariables) -> None:
    set_only()
    assert not on_lambda()

    set_only(AWS_LAMBDA_FUNCTION_NAME="order-api")
    assert on_lambda() is ("chalice.local" not in sys.modules)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, {"user": "orders_app", "password": "s3cret", "host": "db.example", "dbname": "orders"}),
        (URL.replace("postgresql:", "postgres:"), {"host": "db.example", "port": "5432"}),
        (URL.replace("postgresql:", "postgresql+psycopg2:"), {"host": "db.example", "password": "s3cret"}),
        (URL.replace("s3cret", "s3%40cr%2Fet%25"), {"password": "s3@cr/et%", "host": "db.example"}),
        (
            URL + "?sslmode=verify-full&sslrootcert=/ca.pem",
            {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
        ),
        (URL + "?application_name=blue", {"application_name": "blue"}),
        ("postgresql://orders_app@/orders?host=/run/postgresql", {"host": "/run/postgresql"}),
        ("host=db.example dbname=orders user=orders_app", {"host": "db.example", "dbname": "orders"}),
    ],
)
def test_database_url_is_parsed(set_only: SetVariables, url: str, expected: dict[str, str]) -> None:
    set_only(DATABASE_URL=url)

    connect = database_settings().connect

    assert {name: connect.get(name) for name in expected} == expected


def test_database_variables_are_parsed(set_only: SetVariables) -> None:
    set_only(**PARTS, DB_PORT="6432", DB_PASSWORD="p@ss/w%40rd")

    connect = database_settings().connect

    assert (connect["host"], connect["port"], connect["dbname"]) == ("db.example", "6432", "orders")
    assert (connect["user"], connect["password"]) == ("orders_app", "p@ss/w%40rd")


@pytest.mark.parametrize(
    ("ports", "sent"), [({}, "5432"), ({"DB_PORT": "6000"}, "6000"), ({"DB_PORT": "6000,6001"}, "6000,6001")]
)
def test_several_hosts_connect_to_the_primary(
    set_only: SetVariables, ports: dict[str, str], sent: str
) -> None:
    set_only(**{**PARTS, "DB_HOST": "db-1.example,db-2.example", **ports})

    connect = database_settings().connect

    assert (connect["host"], connect["port"]) == ("db-1.example,db-2.example", sent)
    assert connect["target_session_attrs"] == "read-write"
    assert connect["sslmode"] == "require"


def test_url_can_override_target_session_attrs(set_only: SetVariables) -> None:
    set_only(DATABASE_URL="postgresql://orders_app@a.example,b.example/orders?target_session_attrs=any")

    assert database_settings().connect["target_session_attrs"] == "any"


def test_keepalives_are_on_unless_the_url_changes_them(set_only: SetVariables) -> None:
    set_only(**PARTS)
    assert database_settings().connect["keepalives_idle"] == 60

    set_only(DATABASE_URL="postgresql://orders_app@a.example/orders?keepalives=0&keepalives_idle=7")
    connect = database_settings().connect
    assert (connect["keepalives"], connect["keepalives_idle"]) == ("0", "7")


def test_single_host_sets_no_target_session_attrs(set_only: SetVariables) -> None:
    set_only(**PARTS)

    assert "target_session_attrs" not in database_settings().connect


@pytest.mark.parametrize("ports", ["6000,6001,6002", "6000,", "6000,x", "0,6000", "6000,70000"])
def test_mismatched_port_list_is_rejected(set_only: SetVariables, ports: str) -> None:
    set_only(**{**PARTS, "DB_HOST": "db-1.example,db-2.example", "DB_PORT": ports})

    text = error_text(database_settings)

    assert f"DB_PORT is {ports!r}" in text
    assert "as many as DB_HOST has hosts" in text


SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders-AbCdEf"


@pytest.mark.parametrize("named", [{"DB_HOST": "db-1.example,db-2.example"}, {}], ids=["variable", "secret"])
def test_secret_reference_allows_a_port_per_host(set_only: SetVariables, named: dict[str, str]) -> None:
    """The number of hosts in a secret is unknown until it is fetched."""
    set_only(**named, DB_PORT="6000,6001", DB_PASSWORD=SECRET)

    database = database_settings()

    assert str(database.secret) == SECRET
    several = {"host": "db-1.example,db-2.example", "port": "6000,6001"}
    secret = {"DB_HOST": several["host"], "DB_NAME": "orders", "DB_USER": "orders_app"}
    assert several.items() <= connect_arguments(secret).items()


@pytest.mark.parametrize("ports", ["6000,6001,6002", "6000,x"])
def test_secret_reference_still_rejects_mismatched_ports(set_only: SetVariables, ports: str) -> None:
    set_only(DB_HOST="db-1.example,db-2.example", DB_PORT=ports, DB_PASSWORD=SECRET)

    assert f"DB_PORT is {ports!r}" in error_text(database_settings)


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", (100, 1)), ("1/m", (1, 60)), ("5000/h", (5000, 3600)), ("", None)]
)
def test_rate_limit_is_requests_per_period(
    set_only: SetVariables, text: str, rate: tuple[int, int] | None
) -> None:
    set_only(RATE_LIMIT=text)

    limit = rate_limit()

    assert (limit and (limit.requests, limit.seconds)) == rate


@pytest.mark.parametrize("text", ["100", "0/s", "-1/s", "100/d", "1.5/s", "100/ s", "s", "12345678/s", "१/s"])
def test_malformed_rate_limit_is_rejected(set_only: SetVariables, text: str) -> None:
    set_only(RATE_LIMIT=text)

    assert "such as 100/s" in error_text(rate_limit)


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("0", False), ("", False)])
def test_unsafe_role_is_allowed_only_by_1(set_only: SetVariables, value: str, allowed: bool) -> None:
    set_only(**PARTS, DB_ALLOW_UNSAFE_ROLE=value)

    assert database_settings().unsafe_role is allowed


def test_other_unsafe_role_values_are_rejected(set_only: SetVariables) -> None:
    set_only(**PARTS, DB_ALLOW_UNSAFE_ROLE="yes")

    assert "DB_ALLOW_UNSAFE_ROLE is 'yes'" in error_text(database_settings)


def test_database_url_takes_precedence_over_parts(set_only: SetVariables) -> None:
    set_only(DATABASE_URL=URL, **{**PARTS, "DB_HOST": "elsewhere.example"})

    assert database_settings().connect["host"] == "db.example"


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "mysql://orders_app:s3cret@db.example/orders",
        "postgresql://orders_app:s3cret%zz@db.example/orders",
        "postgresql://orders_app:s3cret@[db.example/orders",
        "postgresql://orders_app:s3cret@db.example/orders?colour=blue",
        "postgresql://orders_app:x@s3cret@db.example/orders",
        "postgresql://orders_app:s3cret/x@db.example/orders",
        "postgresql://orders_app:s3cret@db.example:five/orders",
    ],
)
def test_a_malformed_url_is_explained_without_its_password(set_only: SetVariables, url: str) -> None:
    set_only(DATABASE_URL=url)

    text = error_text(database_settings)

    assert "DATABASE_URL" in text
    assert "postgresql://user:password@host:5432/name" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    "host",
    [
        "orders_app:s3cret@db.example",
        "db-1.example,orders_app:s3cret@db-2.example",
        "postgresql://orders_app:s3cret@db.example/orders",
        "postgresql://db.example",
    ],
)
def test_malformed_db_host_is_explained_without_its_password(set_only: SetVariables, host: str) -> None:
    """libpq's own messages would contain all of it."""
    set_only(**{**PARTS, "DB_HOST": host})

    text = error_text(database_settings)

    assert "DB_HOST is more than a host name" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("name", sorted(VARIABLES - {"DATABASE_URL"}))
def test_settings_errors_never_show_the_password(set_only: SetVariables, name: str) -> None:
    set_only(**{"DATABASE_URL": URL, "DB_PASSWORD": "s3cret", name: "?"})

    assert all("s3cret" not in text for text in error_texts())


def test_failed_login_is_logged_without_the_password(
    database: Urls, caplog: pytest.LogCaptureFixture
) -> None:
    with api_on(database.app.replace("orders_app@", "nobody:s3cret@")), pytest.raises(Unavailable):
        connections().ping()

    assert "nobody" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("authority", "mode"),
    [
        ("@db.example/orders", "require"),
        ("@10.0.0.5/orders", "require"),
        ("@localhost.example/orders", "require"),
        ("@127.0.0.1.example/orders", "require"),
        ("@[2001:db8::1]/orders", "require"),
        ("@localhost,db.example/orders", "require"),
        ("@/orders?host=/run/postgresql,db.example", "require"),
        ("@/orders?hostaddr=10.0.0.5", "require"),
        ("@localhost/orders?hostaddr=10.0.0.5", "require"),
        ("@localhost/orders", None),
        ("@localhost:6432,127.0.0.1/orders", None),
        ("@127.8.9.1/orders", None),
        ("@[::1]/orders", None),
        ("@/orders", None),
        ("@/orders?host=/run/postgresql", None),
        ("@/orders?hostaddr=127.0.0.1", None),
        ("@db.example/orders?sslmode=disable", "disable"),
        ("@localhost/orders?sslmode=verify-full", "verify-full"),
    ],
)
def test_tls_is_required_except_on_localhost(
    set_only: SetVariables, authority: str, mode: str | None
) -> None:
    set_only(DATABASE_URL=f"postgresql://orders_app{authority}")

    assert database_settings().connect.get("sslmode") == mode


@pytest.mark.parametrize("mode", SSL_MODES)
@pytest.mark.parametrize("given", [{"DATABASE_URL": URL}, {"DATABASE_URL": f"{URL}?sslmode=prefer"}, PARTS])
def test_db_sslmode_overrides_the_url(set_only: SetVariables, mode: str, given: dict[str, str]) -> None:
    set_only(**given, DB_SSLMODE=mode)

    assert database_settings().connect["sslmode"] == mode


@pytest.fixture
def pem(tmp_path: Path) -> str:
    """A file that looks like a CA certificate."""
    path = tmp_path / "authority.pem"
    path.write_text("Root\n-----BEGIN CERTIFICATE-----\n")
    return str(path)


@pytest.mark.parametrize("mode", [None, *SSL_MODES])
@pytest.mark.parametrize("given", [{"DATABASE_URL": URL}, PARTS, {**PARTS, "DB_HOST": "a.example,b.example"}])
def test_db_sslrootcert_implies_verify_full_without_a_mode(
    set_only: SetVariables, pem: str, given: dict[str, str], mode: str | None
) -> None:
    set_only(**given, DB_SSLROOTCERT=pem, **({"DB_SSLMODE": mode} if mode else {}))

    connect = database_settings().connect

    assert (connect["sslmode"], connect["sslrootcert"]) == (mode or "verify-full", pem)


@pytest.mark.parametrize("secret", [{"DB_HOST": "a.example", "DB_NAME": "orders", "DB_USER": "orders_app"}])
def test_db_sslrootcert_applies_to_a_secrets_host(
    set_only: SetVariables, pem: str, secret: dict[str, str]
) -> None:
    set_only(DB_PASSWORD=SECRET, DB_SSLROOTCERT=pem)

    connect = connect_arguments(secret)

    assert (connect["host"], connect["sslmode"]) == ("a.example", "verify-full")
    assert connect["sslrootcert"] == pem


@pytest.mark.parametrize(
    ("query", "mode", "own"),
    [
        ("?sslmode=require", "require", None),
        ("?sslmode=disable", "disable", None),
        ("?sslrootcert=/own.pem", "verify-full", "/own.pem"),
        ("?sslrootcert=system", "verify-full", "system"),
        ("?sslmode=verify-ca&sslrootcert=/own.pem", "verify-ca", "/own.pem"),
    ],
)
def test_url_overrides_ssl_mode_and_authority(
    set_only: SetVariables, pem: str, query: str, mode: str, own: str | None
) -> None:
    set_only(DATABASE_URL=URL + query, DB_SSLROOTCERT=pem)

    connect = database_settings().connect

    assert (connect["sslmode"], connect["sslrootcert"]) == (mode, own or pem)


@pytest.mark.parametrize("authority", ["@localhost/orders", "@/orders?host=/run/postgresql"])
def test_localhost_is_not_verified_without_a_mode(set_only: SetVariables, pem: str, authority: str) -> None:
    url = f"postgresql://orders_app{authority}"
    set_only(DATABASE_URL=url, DB_SSLROOTCERT=pem)
    assert database_settings().connect.keys().isdisjoint({"sslmode", "sslrootcert"})

    set_only(DATABASE_URL=url, DB_SSLROOTCERT=pem, DB_SSLMODE="verify-full")
    assert database_settings().connect["sslrootcert"] == pem


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        ("", "it holds no certificate"),
        ("<html>404</html>", "it holds no certificate"),
        ("-----BEGIN PRIVATE KEY-----", "it holds no certificate"),
    ],
)
@pytest.mark.parametrize("given", [{"DATABASE_URL": URL}, PARTS, {"DB_PASSWORD": SECRET}])
def test_invalid_db_sslrootcert_file_is_explained(
    set_only: SetVariables, tmp_path: Path, given: dict[str, str], content: str | None, fault: str
) -> None:
    path = tmp_path if content == "folder" else tmp_path / "authority.pem"
    if content not in (None, "folder"):
        path.write_text(content)
    set_only(**given, DB_SSLROOTCERT=str(path))

    text = error_text(database_settings)

    assert f"DB_SSLROOTCERT is {str(path)!r}: {fault}. Use a PEM file" in text


def test_database_variables_also_require_tls(set_only: SetVariables) -> None:
    set_only(**PARTS)

    assert database_settings().connect["sslmode"] == "require"


def test_pool_limits_have_defaults(set_only: SetVariables) -> None:
    set_only(**PARTS)

    settings = database_settings()

    assert (settings.pool_idle, settings.pool_max) == (5, 25)
    assert (settings.pool_recycle, settings.pool_timeout) == (300, 3)
    assert settings.connect["connect_timeout"] == 3


def test_larger_pool_size_raises_the_maximum_too(set_only: SetVariables) -> None:
    set_only(**PARTS, DB_POOL_SIZE="40")

    settings = database_settings()

    assert (settings.pool_idle, settings.pool_max) == (40, 40)


@pytest.mark.parametrize(
    ("variable", "address", "prepares"),
    [
        ({}, "db.example:5432", True),
        ({}, "db.example:6432", False),
        ({}, "orders.proxy-abcdefghijkl.eu-west-1.rds.amazonaws.com:5432", False),
        ({}, "orders.cluster-abcdefghijkl.eu-west-1.rds.amazonaws.com:5432", True),
        ({}, "ep-cool-darkness-123456-pooler.eu-west-2.aws.neon.tech:5432", False),
        ({}, "aws-0-eu-west-1.pooler.supabase.com:5432", False),
        ({"DB_PREPARE": "on"}, "db.example:6432", True),
        ({"DB_PREPARE": "off"}, "db.example:5432", False),
        ({"DB_PREPARE": ""}, "db.example:5432", True),
    ],
)
def test_db_prepare_defaults_to_off_for_pooler_addresses(
    set_only: SetVariables, variable: dict[str, str], address: str, prepares: bool
) -> None:
    set_only(**PARTS, **variable)
    host, _, port = address.partition(":")

    assert database_settings().prepares(host, int(port)) is prepares


def test_url_cannot_change_client_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://orders_app@/orders?client_encoding=latin1")

    assert database_settings().connect["client_encoding"] == "UTF8"


def test_owner_connection_also_uses_tls(set_only: SetVariables, pem: str) -> None:
    url = "postgresql://owner@db.example/orders"
    set_only()

    assert parse_database_url(url, "OWNER_DATABASE_URL")["sslmode"] == "require"
    assert parse_database_url(f"{url}?sslmode=verify-full", "OWNER_DATABASE_URL")["sslmode"] == "verify-full"

    set_only(DB_SSLROOTCERT=pem)
    assert parse_database_url(url, "OWNER_DATABASE_URL")["sslmode"] == "verify-full"
