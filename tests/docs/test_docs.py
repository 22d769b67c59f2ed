"""The pages' links, names and JSON are valid, and their commands run where this machine can run them.

A shell block that begins with `make build-` runs as it stands. The commands of a first deployment run against
stand-ins of the clouds' command lines, those of a move against two real databases.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chalicelib import errors
from tests.conftest import connected
from tests.docs.test_readme import as_a_newcomer, cloned, shell
from tests.support.client import Client
from tests.support.servers import api_on, private_server
from tools.postgres_server import EMBEDDED, Server

PROJECT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in sorted((PROJECT / "docs").glob("*.md"))}
LINKING = sorted({*(PROJECT / "docs").rglob("*.md"), *PROJECT.glob("*.md")})
CLOUDS = ("azure", "gcp", "oci")
SECTIONS = [
    "Prerequisites",
    "First deploy",
    "Configuration",
    "Identity",
    "Secrets",
    "Private networking",
    "Logs and metrics",
    "Costs that matter",
    "Tear-down",
    "What differs here",
    "Troubleshooting",
]
OTHERS = {
    *("HTTPS_PROXY", "REQUESTS_CA_BUNDLE", "AZURE_CLIENT_ID", "OCI_RESOURCE_PRINCIPAL_VERSION"),
    *("AWS_PROFILE", "AWS_ENDPOINT_URL_SECRETS_MANAGER", "SSL_CERT_FILE", "OTEL_EXPORTER_OTLP_HEADERS"),
}
"""Environment variables that the called SDKs and commands read."""
NO_VARIABLES = {"GENERIC_ARM", "GOOGLE_MANAGED_CAS_CA", "ORACLE_FUNCTIONS_BACKEND", "USERNAME", "PASSWORD"}
DIRECTORY = "6e93a8a3-6b8b-4a52-9f1b-3f0c4a9d2b11"


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    section: str
    language: str
    text: str


def blocks(page: str, language: str, section: str = "") -> list[Block]:
    """The page's blocks in this language, in their order; of one section when it is named."""
    parts = re.split(r"^## (.+)$", PAGES[page], flags=re.MULTILINE)
    titles = ["", *parts[1::2]]
    found = [
        Block(page, title, fence[2], textwrap.dedent(fence[3]))
        for title, part in zip(titles, parts[::2], strict=True)
        for fence in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```$", part, re.DOTALL | re.MULTILINE)
    ]
    return [each for each in found if each.language == language and section in ("", each.section)]


def every_block(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def inline_code(page: str) -> list[str]:
    without_blocks = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", without_blocks)


# Names


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), target
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
        assert anchor in [anchor_of(heading) for heading in headings], target


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_linked_from_the_readme(page: str) -> None:
    assert f"](docs/{page})" in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    tests = "\n".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))

    for name in inline_code(page):
        if re.fullmatch(r"test_\w+", name):
            assert f"def {name}(" in tests, name


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    rules = re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE)
    code = [*inline_code(page), *(block.text for block in blocks(page, "sh"))]
    called = set(re.findall(r"\bmake (?:-s |[A-Z]+=\S+ )*([a-z-]+)", "\n".join(code)))

    assert called <= {target for rule in rules for target in rule.split()}


@pytest.mark.parametrize("page", PAGES)
def test_every_environment_variable_is_read_somewhere(page: str) -> None:
    folders = ("chalicelib", "deploy", "local", "shims", "tools")
    sources = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.is_file()]
    sources = [path for path in sources if path.suffix in (".py", ".json", "") and "pycache" not in str(path)]
    code = "\n".join(path.read_text() for path in [PROJECT / "Makefile", *sources])
    shell_text = "\n".join(block.text for block in blocks(page, "sh"))
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", " ".join(inline_code(page))))
    named |= set(re.findall(r"(?<!-v )\b([A-Z][A-Z0-9_]+)=", shell_text))

    for name in named - OTHERS - NO_VARIABLES:
        used_on_the_page = re.search(rf"\$\{{?{name}\b", shell_text)
        assert used_on_the_page or re.search(rf"\b{name}\b", code), name


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_clouds_pages_have_the_same_sections(cloud: str) -> None:
    assert re.findall(r"^## (.+)$", PAGES[f"{cloud}.md"], re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("cloud", ["aws", *CLOUDS])
def test_the_symptoms_that_people_search_for_are_explained(cloud: str) -> None:
    symptoms = "\n".join(
        re.findall(r"^\| (.*?) \|", PAGES[f"{cloud}.md"].split("## Troubleshooting")[1], re.M)
    )

    assert "Failed to connect to database" in symptoms
    assert errors.MissingTenant.detail in symptoms
    assert "401" in symptoms


def test_the_log_says_what_the_pages_quote(nobody: Client, caplog: pytest.LogCaptureFixture) -> None:
    with api_on("postgresql://orders_app@127.0.0.1:1/orders"):
        assert nobody.get("/health/ready").slug == "unavailable"

    (said,) = [record.getMessage() for record in caplog.records if record.name == "order-api"]
    for cloud in CLOUDS:
        quoted = re.findall(r"the log has `(database unavailable: )\.\.\.`", PAGES[f"{cloud}.md"])
        assert quoted
        assert said.startswith(quoted[0])


# Blocks


@pytest.mark.parametrize("block", every_block("json"), ids=lambda block: block.page)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", every_block("sh"), ids=lambda block: f"{block.page}-{block.text[:20]}")
def test_shell_blocks_are_well_formed(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    with cloned() as folder:
        yield folder


BUILDS = [block for block in every_block("sh") if block.text.startswith("make build-")]


@pytest.mark.slow
@pytest.mark.parametrize("block", BUILDS, ids=lambda block: block.page)
def test_builds_run_as_they_stand(block: Block, clone: Path) -> None:
    said = shell(block.text, clone)

    (cloud,) = re.findall(r"make build-(\w+)", block.text)
    assert f"build/{cloud} is ready" in said
    assert (clone / "build" / cloud / "app.py").is_file()


STAND_IN = """#!{python}
import json, os, pathlib, sys

tool, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
files = [a.partition("@")[2] for a in arguments if a.startswith("@")]
files += [value for flag, value in zip(arguments, arguments[1:]) if flag == "--env-vars-file"]
contents = [pathlib.Path(file).read_text() for file in files if os.path.exists(file)]
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps([tool, arguments, contents]), file=calls)
if tool == "make" and arguments[0] != "conform":
    os.execv("{make}", ["make", *arguments])
if tool == "psql" and not sys.stdin.isatty() and "-c" not in arguments:
    sys.stdin.read()
tokens = json.dumps({{"access_token": "a.b.c", "idToken": "a.b.c"}})
said = {{"az": "{guid}", "curl": tokens, "openssl": "0123456789abcdef"}}
print(said.get(tool, "ocid1.vaultsecret.oc1.eu-frankfurt-1.example"))
"""
TOOLS = ("az", "func", "gcloud", "fn", "oci", "docker", "psql", "curl", "openssl", "sleep", "make")
Call = tuple[str, list[str], list[str]]
"""A tool, its arguments, and what was in the files that they name."""


@pytest.fixture
def first_deploy(clone: Path, tmp_path: Path) -> Callable[[str], list[Call]]:
    """Runs a page's first deployment, in a shell that takes no unset variable and no failure.

    Returns what it called.
    """
    for tool in TOOLS:
        stand_in = tmp_path / "bin" / tool
        stand_in.parent.mkdir(exist_ok=True)
        text = STAND_IN.format(python=sys.executable, make=shutil.which("make"), guid=DIRECTORY)
        stand_in.write_text(text)
        stand_in.chmod(0o755)

    def run(cloud: str) -> list[Call]:
        commands = "\n".join(block.text for block in blocks(f"{cloud}.md", "sh", "First deploy"))
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": path, "CALLS": str(tmp_path / "calls"), "TOKEN": "a.b.c"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=clone,
            env=as_a_newcomer() | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (tmp_path / "calls").read_text().splitlines()
        return [(tool, args, files) for tool, args, files in map(json.loads, lines)]

    return run


def only(calls: list[Call], *words: str) -> Call:
    """The one call that begins with these words."""
    (found,) = [call for call in calls if (call[0], *call[1])[: len(words)] == words]
    return found


@pytest.mark.slow
def test_the_first_deploy_to_azure_reaches_its_end(first_deploy: Callable[[str], list[Call]]) -> None:
    calls = first_deploy("azure")

    _, _, (written,) = only(calls, "az", "functionapp", "config", "appsettings", "set")
    found = {setting["name"]: setting["value"] for setting in json.loads(written)}
    assert found == {
        "AUTH_AUDIENCE": DIRECTORY,
        "AUTH_ISSUER": f"https://login.microsoftonline.com/{DIRECTORY}/v2.0",
        "AUTH_PROVIDER": "entra",
        "DB_HOST": "shop-orders-db.postgres.database.azure.com",
        "DB_NAME": "orders",
        "DB_PASSWORD": "https://shop-orders-vault.vault.azure.net/secrets/db-password",
        "DB_USER": "orders_app",
    }
    assert "shop-orders-api" in only(calls, "func", "azure", "functionapp", "publish")[1]
    assert "TOKEN=a.b.c" in only(calls, "make", "conform")[1]


@pytest.mark.slow
def test_the_first_deploy_to_google_cloud_reaches_its_end(first_deploy: Callable[[str], list[Call]]) -> None:
    calls = first_deploy("gcp")

    _, arguments, (written,) = only(calls, "gcloud", "run", "deploy")
    found = json.loads(written)
    assert (found["DB_HOST"], found["DB_PASSWORD"]) == (
        "/cloudsql/my-project:europe-west1:orders",
        "projects/my-project/secrets/db-password",
    )
    assert "orders-api@my-project.iam.gserviceaccount.com" in arguments
    assert "my-project:europe-west1:orders" in only(calls, "gcloud", "run", "services", "update")[1]
    assert "TOKEN=a.b.c" in only(calls, "make", "conform")[1]


@pytest.mark.slow
def test_the_first_deploy_to_oracle_reaches_its_end(
    first_deploy: Callable[[str], list[Call]], clone: Path
) -> None:
    calls = first_deploy("oci")

    assert "orders" in only(calls, "fn", "deploy")[1]
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
    assert "TOKEN=a.b.c" in only(calls, "make", "conform")[1]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_schema_is_applied_as_documented(cloud: str) -> None:
    (commands,) = [
        block.text for block in blocks(f"{cloud}.md", "sh", "First deploy") if "-f schema.sql" in block.text
    ]
    on_a_database = "\n".join(line for line in commands.splitlines() if "psql" in line)

    with private_server() as server:
        on_the_database(on_a_database, OWNER_DATABASE_URL=server.urls.owner, APP_PASSWORD="0123456789abcdef")

        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("select rolpassword like 'SCRAM%' from pg_authid where rolname = 'orders_app'")
            assert cursor.fetchone() == (True,)


# Moving

Rows = list[tuple[Any, ...]]


def on_the_database(commands: str, folder: Path = PROJECT, **variables: str) -> str:
    """Run them with PostgreSQL's own programs; what they print."""
    path = f"{EMBEDDED}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=as_a_newcomer() | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Move:
    """An old and a new database, and the commands of docs/moving.md between them."""

    old: Server
    new: Server
    folder: Path

    def do(self, containing: str, section: str, *, reverse: bool = False) -> str:
        """The block of that section that holds this text."""
        (commands,) = [block.text for block in blocks("moving.md", "sh", section) if containing in block.text]
        if reverse:
            commands = commands.replace("OLD_OWNER_URL", "NEW_OWNER_URL")
        urls = {"OLD_OWNER_URL": self.old.urls.owner, "NEW_OWNER_URL": self.new.urls.owner}
        return on_the_database(commands, self.folder, **urls)

    def rows(self, server: Server, table: str) -> Rows:
        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"select * from {table} order by 1, 2, 3")
            found: Rows = cursor.fetchall()
            return found


@pytest.fixture
def move(tmp_path: Path) -> Iterator[Move]:
    shutil.copy(PROJECT / "schema.sql", tmp_path)
    with private_server() as old, private_server() as new:
        for server in (old, new):
            on_the_database('psql "$URL" -q -v ON_ERROR_STOP=1 -f schema.sql', URL=server.urls.owner)
        yield Move(old, new, tmp_path)


TABLES = ("orders", "order_items", "idempotency_keys")


@pytest.mark.slow
def test_a_move_takes_every_order_and_every_key_along(move: Move, alice: Client, stranger: Client) -> None:
    with api_on(move.old.urls.app):
        first = alice.place(key="before-the-move")
        assert [first.status, stranger.place().status] == [201, 201]
    with api_on(move.new.urls.app):
        assert alice.place().status == 201  # the conformance list does
    move.do("truncate", "Beforehand")

    with api_on(move.old.urls.app):
        move.do("= on", "The move")
    with api_on(move.old.urls.app):
        refused = alice.place(key="during-the-move")
        assert (refused.slug, refused.headers["retry-after"]) == ("unavailable", "1")
        assert len(alice.get("/orders").json["orders"]) == 1
    move.do("pg_restore", "The move")
    counts = move.do("COUNTS", "The move").splitlines()

    assert [line for line in counts if "|" in line][0::2] == [line for line in counts if "|" in line][1::2]
    for table in TABLES:
        assert move.rows(move.new, table) == move.rows(move.old, table) != []
    with api_on(move.new.urls.app):
        again = alice.place(key="before-the-move")
        assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
        assert alice.place(key="during-the-move").status == 201
        assert len(stranger.get("/orders").json["orders"]) == 1


@pytest.mark.slow
def test_a_move_puts_row_level_security_back(move: Move, alice: Client) -> None:
    with api_on(move.old.urls.app):
        alice.place()

    move.do("pg_restore", "The move")
    move.do("COUNTS", "The move")

    for server in (move.old, move.new):
        forced = move.rows(server, "(select relname, relforcerowsecurity, 0 from pg_class) as c")
        assert {(name, flag) for name, flag, _ in forced if name in TABLES} == {
            (name, True) for name in TABLES
        }


@pytest.mark.slow
def test_a_rollback_carries_new_orders_back(move: Move, alice: Client) -> None:
    with api_on(move.old.urls.app):
        alice.place(key="before-the-move")
    move.do("= on", "The move")
    move.do("pg_restore", "The move")
    move.do("COUNTS", "The move")
    with api_on(move.new.urls.app):
        after = alice.place(key="after-the-move")
        move.do("= on", "The move", reverse=True)

    move.do("back.sql", "Rollback")

    for table in TABLES:
        assert move.rows(move.old, table) == move.rows(move.new, table)
    with api_on(move.old.urls.app):
        assert alice.place(key="after-the-move").body == after.body
        assert alice.place().status == 201


@pytest.mark.slow
def test_open_connections_stop_writing_within_their_lifetime(move: Move, alice: Client) -> None:
    with api_on(move.old.urls.app, DB_POOL_RECYCLE="1"):
        assert alice.place().status == 201
        move.do("= on", "The move")
        on_the_database("sleep 1.1")

        assert alice.place().slug == "unavailable"
