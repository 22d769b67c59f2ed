"""`make run` and `make token`: the whole service on this machine."""

import argparse
import errno
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

from chalicelib.caller import Caller
from chalicelib.errors import Problem
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.http import cors_origin
from chalicelib.settings.startup import check_settings
from chalicelib.settings.table import PASSED_TO_OTHER_HOSTS
from local import database, docs, hosts, issuer, postgres
from local.key_server import serving_keys
from migrations.migrate import migrate

PROJECT = Path(__file__).parent.parent
FOLDER = PROJECT / ".local"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="serve the API with an embedded PostgreSQL")
    commands.add_parser("token", help="print a token for TENANT and TOKEN_USER")
    serve = commands.add_parser("serve", help="serve a built folder with its cloud's own Python runtime")
    serve.add_argument("cloud", choices=hosts.RUNTIMES)
    chosen = parser.parse_args()
    host, port = os.environ.get("HOST") or "127.0.0.1", _port()
    if chosen.command == "token":
        print(_token(os.environ.get("TENANT") or "acme", os.environ.get("TOKEN_USER") or "alice"))
    elif chosen.command == "serve":
        run(lambda urls: _serve_built(chosen.cloud, host, port, urls))
    else:
        _refuse_incomplete_database()
        run(lambda urls: _serve(host, port, urls))


def run(serve: Callable[[database.Urls], None]) -> None:
    """Bring the database up and serve until Ctrl-C or SIGTERM."""
    # SIGINT too, because shells start background jobs without it; SIGHUP when the terminal closes.
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        with _database() as urls:
            serve(urls)
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    except PermissionError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}. Run as the user who owns {PROJECT}") from None
    except KeyboardInterrupt:
        print("\nStopped. The orders are kept.")


def _refuse_incomplete_database() -> None:
    incomplete = {"DB_HOST", "OWNER_DATABASE_URL"} & os.environ.keys()
    if incomplete and not os.environ.get("DATABASE_URL"):
        raise SystemExit(
            "To use your own server set DATABASE_URL, and OWNER_DATABASE_URL to apply schema.sql"
        )


def _token(tenant: str, user: str) -> str:
    try:
        Caller(tenant_id=tenant, user_id=user)
    except Problem:
        raise SystemExit("TENANT and USER take 1 to 255 printable characters") from None
    return issuer.Issuer(FOLDER).token(tenant, user)


def _serve(host: str, port: int, urls: database.Urls) -> None:
    """The API on gunicorn, behind the shims' gateway, with its docs page."""
    tokens = issuer.Issuer(FOLDER)
    api = _url(host, port)
    environment = _environment(urls, f"{api}/.well-known/jwks.json", host)
    os.environ.update(environment, no_proxy=environment["NO_PROXY"])
    from app import app
    from local.server import serve

    jwks = json.dumps(tokens.jwks()).encode()

    def local_page(path: str) -> tuple[str, bytes] | None:
        return ("application/json", jwks) if path == "/.well-known/jwks.json" else docs.page(path)

    try:
        server = serve(app, host, port, local_page)
    except OSError as error:
        raise _cannot_listen("run", host, port, error) from None
    _write_private("env", "".join(f"{name}={shlex.quote(value)}\n" for name, value in environment.items()))
    print(_block(api, urls.app, tokens, page=True), flush=True)
    server.serve_forever()


def _serve_built(cloud: str, host: str, port: int, urls: database.Urls) -> None:
    """Serve build/<cloud> on that cloud's own runtime, in a child process."""
    built = PROJECT / hosts.FOLDERS[cloud]
    if not built.exists():
        raise SystemExit(f"{built} is not there: run make build-{built.name} first")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise _cannot_listen(f"local-{cloud}", host, port, error) from None
    tokens = issuer.Issuer(FOLDER)
    with serving_keys(tokens.jwks()) as jwks_url:
        local = _environment(urls, jwks_url, host)
        os.environ.update(local, no_proxy=local["NO_PROXY"])
        check_settings()
        cors_origin()
        environment = {**_passed_on(cloud), **local}
        with hosts.serving(cloud, built, environment, host, port) as process:
            print(_block(_url(host, port), urls.app, tokens, page=False), flush=True)
            process.wait()
    raise SystemExit("The host has ended: see its output above")


def _url(host: str, port: int) -> str:
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104


def _environment(urls: database.Urls, jwks_url: str, host: str) -> dict[str, str]:
    """The settings for this database and this machine's tokens."""
    return {
        "DATABASE_URL": urls.app,
        **issuer.variables(jwks_url),
        "BASE_PATH": "",
        "DOCS": "on",
        # The keys are on this machine: fetch them without a proxy.
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost", host])),
    }


def _passed_on(cloud: str) -> dict[str, str]:
    """The variables of your shell that a deployed function would read, without the database's address.

    A build contains the database's authority; `aws` serves the sources, and needs DB_SSLROOTCERT.
    """
    address = {"DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"}
    names = {*PASSED_TO_OTHER_HOSTS, "DB_SSLROOTCERT"} if cloud == "aws" else {*PASSED_TO_OTHER_HOSTS}
    return {name: os.environ[name] for name in names - address if os.environ.get(name)}


def _cannot_listen(target: str, host: str, port: int, error: OSError) -> SystemExit:
    hint = f" Try: make {target} PORT=8001" if error.errno == errno.EADDRINUSE else ""
    return SystemExit(f"Cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}.{hint}")


def _block(api: str, database_url: str, tokens: issuer.Issuer, page: bool) -> str:
    acme, globex = tokens.token("acme", "alice"), tokens.token("globex", "bob")
    key = f"demo-{int(time.time())}"
    as_acme, as_globex = (f"-H 'Authorization: Bearer {token}'" for token in (acme, globex))
    body = shlex.quote(f"@{PROJECT / 'test_order.json'}")
    headers = f"-H 'Content-Type: application/json' -H 'Idempotency-Key: {key}'"
    place = f"{api}/orders {as_acme} {headers} --data {body}"
    newest = f"curl -s '{api}/orders?limit=1' {as_acme} | grep -o '[0-9a-f-]\\{{36\\}}' | head -1"
    return f"""
  API       {api}
  Docs      {api}/{"docs" if page else "openapi.json"}
  Database  {_without_password(database_url)}

  Token of alice at acme
{acme}

  Token of bob at globex
{globex}

  1. Place an order
curl -i {place}

  2. The same again with the same Idempotency-Key: the same order, placed once
curl -i {place}

  3. List the orders of acme, newest first
curl -i '{api}/orders?limit=10' {as_acme}

  4. globex asks for that order: 404
curl -i {api}/orders/$({newest}) {as_globex}

  More tokens: make token TENANT=acme USER=alice      Stop: Ctrl-C
"""


@contextmanager
def _database() -> Iterator[database.Urls]:
    """Your own server when DATABASE_URL names one, else the embedded one."""
    app_url, owner_url = os.environ.get("DATABASE_URL"), os.environ.get("OWNER_DATABASE_URL")
    if app_url:
        try:
            if owner_url:
                migrate(owner_url, quiet=False)
            problem = database.check_app_role()
        except psycopg2.Error as error:
            raise SystemExit(f"Your database cannot be used: {str(error).strip()}") from None
        if problem:
            raise SystemExit(f"DATABASE_URL cannot be used: {problem}.")
        yield database.Urls(owner=owner_url or "", app=app_url)
        return
    if opened := postgres.folders_to_open(FOLDER):
        print(
            "You are root, and PostgreSQL runs as the user embedded_postgres. To let it in, these folders "
            f"become readable for everyone: {', '.join(map(str, opened))}\n"
            "To avoid that run as another user, or set DATABASE_URL.",
            file=sys.stderr,
            flush=True,
        )
    with database.embedded(FOLDER) as urls:
        yield urls


def _without_password(url: str) -> str:
    url = re.sub(r"(?<=://)([^:@/]*):[^@]*@", r"\1:***@", url)
    return re.sub(r"(?<=password=)[^&]*", "***", url)


def _write_private(name: str, text: str) -> None:
    """A file in FOLDER that only its owner may read: a DATABASE_URL may hold a password."""
    path = FOLDER / name
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def _port() -> int:
    text = os.environ.get("PORT") or "8000"
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise SystemExit(f"PORT is {text!r}: use a number from 1 to 65535, as in make run PORT=8001")
    return int(text)


if __name__ == "__main__":
    main()
