"""The pages' links, names, JSON and shell are valid; quoted log lines are those of the API."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from chalicelib import errors
from tests.docs.pages import PAGES, PROJECT, Block, blocks, every_block, inline_code
from tests.support.servers import api_on
from tools.client import Client

LINKED_PAGES = sorted({*(PROJECT / "docs").rglob("*.md"), *PROJECT.glob("*.md")})
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
READ_BY_SDKS = {
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "AWS_PROFILE",
    "AZURE_CLIENT_ID",
    "HTTPS_PROXY",
    "OCI_RESOURCE_PRINCIPAL_VERSION",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
}
"""Environment variables that SDKs and commands read."""
NO_VARIABLES = {"GENERIC_ARM", "GOOGLE_MANAGED_CAS_CA", "ORACLE_FUNCTIONS_BACKEND", "USERNAME", "PASSWORD"}


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda page: page.name)
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
def test_every_named_test_exists(page: str) -> None:
    tests = "\n".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))

    for name in inline_code(page):
        if re.fullmatch(r"test_\w+", name):
            assert f"def {name}(" in tests, name


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    paths = re.findall(
        r"`((?:audit|bench|chalicelib|deploy|local|shims|tests|tools)/[\w/.]+)", page.read_text()
    )

    assert [path for path in paths if not (PROJECT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    rules = re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE)
    code = [*inline_code(page), *(block.text for block in blocks(page, "sh"))]
    called = set(re.findall(r"\bmake (?:-s |[A-Z]+=\S+ )*([a-z-]+)", "\n".join(code)))

    assert called <= {target for rule in rules for target in rule.split()}


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_environment_variable_is_read(page: str) -> None:
    folders = ("chalicelib", "deploy", "local", "migrations", "shims", "tools")
    sources = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.is_file()]
    sources = [path for path in sources if path.suffix in (".py", ".json", "") and "pycache" not in str(path)]
    code = "\n".join(path.read_text() for path in [PROJECT / "Makefile", *sources])
    shell_text = "\n".join(block.text for block in blocks(page, "sh"))
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", " ".join(inline_code(page))))
    named |= set(re.findall(r"(?<!-v )\b([A-Z][A-Z0-9_]+)=", shell_text))

    for name in named - READ_BY_SDKS - NO_VARIABLES:
        used_on_the_page = re.search(rf"\$\{{?{name}\b", shell_text)
        assert used_on_the_page or re.search(rf"\b{name}\b", code), name


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_clouds_pages_have_the_same_sections(cloud: str) -> None:
    assert re.findall(r"^## (.+)$", PAGES[f"{cloud}.md"], re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("cloud", ["aws", *CLOUDS])
def test_troubleshooting_covers_the_common_symptoms(cloud: str) -> None:
    symptoms = "\n".join(
        re.findall(r"^\| (.*?) \|", PAGES[f"{cloud}.md"].split("## Troubleshooting")[1], re.M)
    )

    assert "Failed to connect to database" in symptoms
    assert errors.MissingTenant.detail in symptoms
    assert "401" in symptoms


def test_quoted_log_message_matches_the_real_one(anonymous: Client, caplog: pytest.LogCaptureFixture) -> None:
    with api_on("postgresql://orders_app@127.0.0.1:1/orders"):
        assert anonymous.get("/health/ready").slug == "unavailable"

    (message,) = [record.getMessage() for record in caplog.records if record.name == "order-api"]
    for cloud in CLOUDS:
        quoted = re.findall(r"the log has `(database unavailable: )\.\.\.`", PAGES[f"{cloud}.md"])
        assert quoted
        assert message.startswith(quoted[0])


@pytest.mark.parametrize("block", every_block("json"), ids=lambda block: block.page)
def test_json_blocks_are_valid(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", every_block("sh"), ids=lambda block: f"{block.page}-{block.text[:20]}")
def test_shell_blocks_are_well_formed(block: Block) -> None:
    result = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
