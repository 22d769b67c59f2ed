"""The commands of the clouds' pages: builds run unchanged, deployments call fakes of the clouds' CLIs."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.clone import clean_environment, shell_with_psql
from tests.docs.pages import blocks
from tests.support.servers import private_server
from tools.postgres_server import connected

pytestmark = pytest.mark.slow

CLOUDS = ("azure", "gcp", "oci")
DIRECTORY = "6e93a8a3-6b8b-4a52-9f1b-3f0c4a9d2b11"

STAND_IN = r"""#!/bin/sh
tool=${{0##*/}} reads_stdin=yes
for argument; do
    file=
    case $argument in
        @*) file=${{argument#@}} ;;
        -c) reads_stdin= ;;
    esac
    [ "$previous" != --env-vars-file ] || file=$argument
    previous=$argument
    printf 'argument %s\0' "$argument"
    [ ! -f "$file" ] || printf 'file %s\0' "$(cat "$file")"
done > "$CALLS/$(date +%s%N) $tool"
case $tool in
    make) [ "$1" = conform ] || exec {make} "$@" ;;
    psql) [ -t 0 ] || [ -z "$reads_stdin" ] || cat > /dev/null ;;
    az) echo {guid} ;;
    curl) echo '{{"access_token": "a.b.c", "idToken": "a.b.c"}}' ;;
    openssl) echo 0123456789abcdef ;;
    *) echo ocid1.vaultsecret.oc1.eu-frankfurt-1.example ;;
esac
"""
"""Writes a file for each call, which is named for the time and the tool; in shell, which starts fast."""
TOOLS = ("az", "func", "gcloud", "fn", "oci", "docker", "psql", "curl", "openssl", "sleep", "make")
Call = tuple[str, list[str], list[str]]
"""A tool, its arguments, and the contents of the files that they name."""


@pytest.fixture
def first_deploy(clone: Path, tmp_path: Path) -> Callable[[str], list[Call]]:
    """Runs a page's first deployment in a shell that stops at an unset variable or an error.

    Returns the calls of the fakes.
    """
    for tool in TOOLS:
        stand_in = tmp_path / "bin" / tool
        stand_in.parent.mkdir(exist_ok=True)
        text = STAND_IN.format(make=shutil.which("make"), guid=DIRECTORY)
        stand_in.write_text(text)
        stand_in.chmod(0o755)

    (tmp_path / "calls").mkdir()

    def run(cloud: str) -> list[Call]:
        commands = "\n".join(block.text for block in blocks(f"{cloud}.md", "sh", "First deploy"))
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": path, "CALLS": str(tmp_path / "calls"), "TOKEN": "a.b.c"}
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=clone,
            env=clean_environment() | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "\nmake build-" in f"\n{commands}"
        assert f"build/{cloud} is ready" in result.stdout
        assert (clone / "build" / cloud / "app.py").is_file()
        return [read_call(file) for file in sorted((tmp_path / "calls").iterdir())]

    return run


def read_call(file: Path) -> Call:
    parts = [part.partition(" ") for part in file.read_text().split("\0")[:-1]]
    arguments, contents = (
        [value for kind, _, value in parts if kind == wanted] for wanted in ("argument", "file")
    )
    return file.name.partition(" ")[2], arguments, contents


def only_call(calls: list[Call], *words: str) -> Call:
    """The only call that starts with these words."""
    (matching,) = [call for call in calls if (call[0], *call[1])[: len(words)] == words]
    return matching


def test_first_deploy_to_azure_completes(first_deploy: Callable[[str], list[Call]]) -> None:
    calls = first_deploy("azure")

    _, _, (settings_file,) = only_call(calls, "az", "functionapp", "config", "appsettings", "set")
    settings = {setting["name"]: setting["value"] for setting in json.loads(settings_file)}
    assert settings == {
        "AUTH_AUDIENCE": DIRECTORY,
        "AUTH_ISSUER": f"https://login.microsoftonline.com/{DIRECTORY}/v2.0",
        "AUTH_PROVIDER": "entra",
        "DB_HOST": "shop-orders-db.postgres.database.azure.com",
        "DB_NAME": "orders",
        "DB_PASSWORD": "https://shop-orders-vault.vault.azure.net/secrets/db-password",
        "DB_USER": "orders_app",
    }
    assert "shop-orders-api" in only_call(calls, "func", "azure", "functionapp", "publish")[1]
    assert "TOKEN=a.b.c" in only_call(calls, "make", "conform")[1]


def test_first_deploy_to_google_cloud_completes(first_deploy: Callable[[str], list[Call]]) -> None:
    calls = first_deploy("gcp")

    _, arguments, (settings_file,) = only_call(calls, "gcloud", "run", "deploy")
    settings = json.loads(settings_file)
    assert (settings["DB_HOST"], settings["DB_PASSWORD"]) == (
        "/cloudsql/my-project:europe-west1:orders",
        "projects/my-project/secrets/db-password",
    )
    assert "orders-api@my-project.iam.gserviceaccount.com" in arguments
    assert "my-project:europe-west1:orders" in only_call(calls, "gcloud", "run", "services", "update")[1]
    assert "TOKEN=a.b.c" in only_call(calls, "make", "conform")[1]


def test_first_deploy_to_oracle_completes(first_deploy: Callable[[str], list[Call]], clone: Path) -> None:
    calls = first_deploy("oci")

    assert "orders" in only_call(calls, "fn", "deploy")[1]
    configured = [args for tool, args, _ in calls if tool == "fn" and args[:2] == ["config", "function"]]
    assert ["BASE_PATH", "/shop"] in [args[-2:] for args in configured]
    for _, arguments, _ in calls:
        for argument in arguments:
            if argument.startswith(("{", "[")):
                json.loads(argument)
    assert all(
        statement.startswith("Allow ") for statement in json.loads((clone / "policies.json").read_text())
    )
    (route,) = json.loads((clone / "gateway.json").read_text())["routes"]
    assert (route["path"], route["methods"]) == ("/{path*}", ["ANY"])
    assert route["backend"]["functionId"].startswith("ocid1.")
    assert "TOKEN=a.b.c" in only_call(calls, "make", "conform")[1]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_schema_can_be_applied_as_documented(cloud: str) -> None:
    (commands,) = [
        block.text for block in blocks(f"{cloud}.md", "sh", "First deploy") if "-f schema.sql" in block.text
    ]
    psql_commands = "\n".join(line for line in commands.splitlines() if "psql" in line)

    with private_server() as server:
        shell_with_psql(psql_commands, OWNER_DATABASE_URL=server.urls.owner, APP_PASSWORD="0123456789abcdef")

        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("select rolpassword like 'SCRAM%' from pg_authid where rolname = 'orders_app'")
            assert cursor.fetchone() == (True,)
