"""`make deploy-azure`, `deploy-gcp`, `deploy-run`, `deploy-oci`: the commands they call, and their errors.

The clouds' programs need accounts, so the tests replace them with programs that record their calls.
"""

import json
import re
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from deploy import hosts
from tests.support.builds import python_m_deploy

pytestmark = pytest.mark.slow

Json = dict[str, Any]
Deploy = Callable[..., "DeployResult"]

PASSWORD = "hunter2"
SECRET = "ocid1.vaultsecret.oc1.eu-frankfurt-1.amaaaaaaexample"
SETTINGS = {
    "DB_HOST": "db.example",
    "DB_NAME": "orders",
    "DB_USER": "orders_app",
    "DB_PASSWORD": PASSWORD,
    "AUTH_PROVIDER": "oidc",
    "AUTH_ISSUER": "https://issuer.example",
    "AUTH_AUDIENCE": "shops",
    "AUTH_JWKS_URL": "https://issuer.example/keys",
}
TARGET_VARIABLES = {
    "azure": {"AZURE_FUNCTIONAPP": "shop-orders", "AZURE_RESOURCE_GROUP": "shop"},
    "gcp": {"GCP_PROJECT": "shop-1234", "GCP_REGION": "europe-west1"},
    "run": {"GCP_PROJECT": "shop-1234", "GCP_REGION": "europe-west1"},
    "oci": {"OCI_APP": "shop", "DB_PASSWORD": SECRET},
}
OTLP_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS")
PROGRAMS = {"azure": ("func", "az"), "gcp": ("gcloud",), "run": ("gcloud",), "oci": ("fn",)}
RECORDER = f"""#!{sys.executable} -I
import json, os, stat, sys
from pathlib import Path

name, folder = Path(sys.argv[0]).name, Path(sys.argv[0]).parent
named = [Path(argument.removeprefix("@")) for argument in sys.argv[1:]]
files = [path for path in named if path.is_file()]
call = {{
    "argv": [name, *sys.argv[1:]],
    "cwd": os.getcwd(),
    "files": {{str(path): [path.read_text(), stat.S_IMODE(path.stat().st_mode)] for path in files}},
}}
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
sys.exit(3 if (folder / f"{{name}} fails").exists() else 0)
"""


@dataclass(frozen=True)
class DeployResult:
    """The finished command, and the calls that it made."""

    process: CompletedProcess[str]
    calls: list[Json]

    @property
    def argv(self) -> list[list[str]]:
        return [call["argv"] for call in self.calls]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    for cloud in hosts.SHIM_FILES:
        hosts.build(cloud, folder / cloud)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with only the recorders of the clouds' programs."""
    for name in ("az", "fn", "func", "gcloud"):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def deploy(builds: Path, tools: Path) -> Deploy:
    """Runs `python -m deploy deploy <target>` with complete settings and these changes.

    The password must not be in its output or in its calls.
    """

    def run(target: str, folder: Path | None = None, **changes: str) -> DeployResult:
        variables = {**SETTINGS, **TARGET_VARIABLES[target], "PATH": str(tools), **changes}
        source = folder or builds / {"run": "gcp"}.get(target, target)
        process = python_m_deploy("deploy", target, "--from", source, variables=variables)
        calls = tools / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        result = DeployResult(process, [json.loads(line) for line in lines])
        assert PASSWORD not in json.dumps(result.argv) + process.stdout + process.stderr
        return result

    return run


def only_file(call: Json) -> tuple[str, Any]:
    """Path and content of the one file that a call names; only its owner could read it."""
    ((path, (text, mode)),) = call["files"].items()
    assert mode == stat.S_IRUSR | stat.S_IWUSR
    assert not Path(path).exists()  # deleted after the call
    return path, json.loads(text)


# Calls


def test_azure_receives_settings_file_and_then_the_folder(deploy: Deploy, builds: Path) -> None:
    result = deploy("azure")

    settings, publish = result.calls
    path, content = only_file(settings)
    assert result.argv == [
        [
            *("az", "functionapp", "config", "appsettings", "set"),
            *("--name", "shop-orders", "--resource-group", "shop", "--output", "none"),
            *("--settings", f"@{path}"),
        ],
        ["func", "azure", "functionapp", "publish", "shop-orders", "--python", "--build", "remote"],
    ]
    assert {entry["name"]: entry["value"] for entry in content} == SETTINGS
    assert {entry["slotSetting"] for entry in content} == {False}
    assert publish["cwd"] == str(builds / "azure")
    assert result.process.returncode == 0


def test_cloud_functions_receives_folder_and_settings_file(deploy: Deploy, builds: Path) -> None:
    result = deploy("gcp")

    path, content = only_file(result.calls[0])
    runtime = f"python{sys.version_info.major}{sys.version_info.minor}"
    assert result.argv == [
        [
            *("gcloud", "functions", "deploy", "orders-api", "--gen2", "--runtime", runtime),
            *("--entry-point", "orders_api", "--trigger-http", "--timeout", "30s"),
            *("--project", "shop-1234", "--region", "europe-west1", "--source", str(builds / "gcp")),
            *("--memory", "512Mi", "--cpu", "1", "--concurrency", "4", "--allow-unauthenticated"),
            *("--env-vars-file", path, "--quiet"),
        ]
    ]
    assert path.endswith(".yaml")
    assert content == {**SETTINGS, "THREADS": "4", "FORWARDED_ALLOW_IPS": ""}


def test_cloud_run_deploys_the_gcp_build_from_source(deploy: Deploy, builds: Path) -> None:
    result = deploy("run", GCP_VPC_CONNECTOR="shop-vpc", GCP_SERVICE_ACCOUNT="orders@shop.example")

    path, content = only_file(result.calls[0])
    assert result.argv == [
        [
            *("gcloud", "run", "deploy", "orders-api", "--timeout", "30"),
            *("--project", "shop-1234", "--region", "europe-west1", "--source", str(builds / "gcp")),
            *("--memory", "512Mi", "--cpu", "1", "--concurrency", "4", "--allow-unauthenticated"),
            *("--vpc-connector", "shop-vpc", "--service-account", "orders@shop.example"),
            *("--env-vars-file", path, "--quiet"),
        ]
    ]
    assert content == {**SETTINGS, "THREADS": "4", "FORWARDED_ALLOW_IPS": ""}
    assert (builds / "gcp/Dockerfile").exists()


def test_oracle_gets_the_folder_and_then_each_setting(deploy: Deploy, builds: Path) -> None:
    result = deploy("oci")

    first, *others = result.argv
    assert first == ["fn", "deploy", "--app", "shop"]
    assert result.calls[0]["cwd"] == str(builds / "oci")
    assert {tuple(argv[:5]) for argv in others} == {("fn", "config", "function", "shop", "orders-api")}
    assert dict(argv[5:] for argv in others) == {**SETTINGS, "DB_PASSWORD": SECRET}


def test_each_oracle_deployment_has_a_new_version(deploy: Deploy, builds: Path) -> None:
    """Oracle Functions caches the first image of a tag."""
    description = builds / "oci/func.yaml"
    built = description.read_text()

    deploy("oci")

    deployed = description.read_text()
    before, after = (re.findall(r"(?m)^version: 0\.0\.(\d+)$", text) for text in (built, deployed))
    assert (len(before), len(after)) == (1, 1)
    assert int(after[0]) > time.time() - 60
    assert deployed.replace(after[0], before[0]) == built


@pytest.mark.parametrize("target", hosts.TARGETS)
def test_deploy_passes_exactly_the_apis_variables(deploy: Deploy, tmp_path: Path, target: str) -> None:
    """Not DB_SSLROOTCERT: the build contains the file."""
    authority = tmp_path / "authority.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----")
    optional = {
        "DB_PORT": "6432",
        "DB_SSLMODE": "verify-full",
        "DB_CONNECT_TIMEOUT": "4",
        "DB_POOL_SIZE": "1",
        "DB_POOL_MAX": "2",
        "DB_POOL_RECYCLE": "60",
        "DB_POOL_TIMEOUT": "5",
        "DB_SECRET_LIFETIME": "60",
        "AUTH_TENANT_CLAIM": "shop",
        "AUTH_USER_CLAIM": "sub",
        "AUTH_EMAIL_CLAIM": "mail",
        "DEFAULT_CURRENCY": "EUR",
        "CORS_ORIGIN": "https://shop.example",
        "BASE_PATH": "/shop",
        "DOCS": "on",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://collector.example/v1/metrics",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "5",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "5",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        "OTEL_METRIC_EXPORT_TIMEOUT": "5000",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "10000",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod",
        "OTEL_SERVICE_NAME": "orders",
        **({} if target == "oci" else dict.fromkeys(OTLP_HEADERS, "authorization=Basic%20x")),
    }

    others = {"DB_SSLROOTCERT": str(authority), "DB_UNKNOWN": "1", "DEFAULT_COLOUR": "red"}

    result = deploy(target, **optional, **others)

    assert result.process.returncode == 0, result.process.stderr
    assert not any(name in json.dumps(result.calls) for name in (*others, str(authority)))
    if target == "oci":
        passed = dict(argv[5:] for argv in result.argv[1:])
    else:
        content = only_file(result.calls[0])[1]
        passed = {entry["name"]: entry["value"] for entry in content} if target == "azure" else content
    for name in ("THREADS", "FORWARDED_ALLOW_IPS"):
        passed.pop(name, None)
    assert passed == {**SETTINGS, **optional, "DB_PASSWORD": passed["DB_PASSWORD"]}


@pytest.mark.parametrize("target", hosts.TARGETS)
def test_no_password_is_on_command_lines_or_printed(deploy: Deploy, target: str) -> None:
    """`deploy` checks this for each other set of variables."""
    deploy(target, DATABASE_URL=f"postgresql://orders_app:{PASSWORD}@db.example/orders", DB_PASSWORD=PASSWORD)


@pytest.mark.parametrize("name", OTLP_HEADERS)
def test_otlp_headers_are_refused_for_oracle_before_deploying(deploy: Deploy, name: str) -> None:
    result = deploy("oci", **{name: "authorization=secret"})

    assert f"{name} would appear on fn's command line" in result.process.stderr
    assert result.calls == []


def test_plain_password_is_refused_for_oracle_before_deploying(deploy: Deploy) -> None:
    plain = deploy("oci", DB_PASSWORD=PASSWORD)
    url = deploy("oci", DB_PASSWORD="", DATABASE_URL=f"postgresql://a:{PASSWORD}@db.example/orders")

    assert plain.process.stderr.startswith("DB_PASSWORD would appear on fn's command line")
    assert url.process.stderr.startswith("DATABASE_URL would appear on fn's command line")
    assert "OCI Vault" in plain.process.stderr
    assert (plain.calls, url.calls) == ([], [])


# Missing prerequisites are reported before any call


@pytest.mark.parametrize(
    ("target", "tool"), [(target, tool) for target, tools in PROGRAMS.items() for tool in tools]
)
def test_missing_program_is_reported_with_install_instructions(
    deploy: Deploy, tools: Path, target: str, tool: str
) -> None:
    (tools / tool).unlink()

    result = deploy(target)

    assert result.process.stderr.startswith(f"{tool} is missing. To get it: ")
    assert (result.process.returncode, result.calls) == (1, [])


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("azure", "AZURE_FUNCTIONAPP"),
        ("azure", "AZURE_RESOURCE_GROUP"),
        ("gcp", "GCP_PROJECT"),
        ("gcp", "GCP_REGION"),
        ("run", "GCP_PROJECT"),
        ("run", "GCP_REGION"),
        ("oci", "OCI_APP"),
    ],
)
def test_missing_variable_is_reported_with_its_meaning(deploy: Deploy, target: str, name: str) -> None:
    result = deploy(target, **{name: ""})

    assert result.process.stderr.startswith(f"{name} is not set: ")
    assert (result.process.returncode, result.calls) == (1, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DB_HOST": ""}, "DB_HOST is not set"),
        ({"AUTH_AUDIENCE": ""}, "AUTH_AUDIENCE is not set"),
        ({"AUTH_PROVIDER": "okta"}, "AUTH_PROVIDER is 'okta'"),
        ({"DB_POOL_MAX": "many"}, "DB_POOL_MAX is 'many'"),
        ({"DB_SSLROOTCERT": "/nowhere"}, "DB_SSLROOTCERT is '/nowhere': No such file"),
        ({"DB_PASSWORD": "ocid1.vaultsecret"}, "DB_PASSWORD"),
        ({"DEFAULT_CURRENCY": "XXL"}, "DEFAULT_CURRENCY is 'XXL'"),
        ({"CORS_ORIGIN": "shop.example"}, "CORS_ORIGIN is 'shop.example'"),
        ({"BASE_PATH": "shop"}, "BASE_PATH is 'shop'"),
    ],
)
def test_setting_that_prevents_startup_is_reported(
    deploy: Deploy, changes: dict[str, str], message: str
) -> None:
    result = deploy("azure", **changes)

    assert result.process.stderr.startswith(f"The function would not start. {message}")
    assert (result.process.returncode, result.calls) == (1, [])


def test_the_settings_of_make_run_are_not_deployed(deploy: Deploy) -> None:
    result = deploy("azure", AUTH_JWKS_URL="http://127.0.0.1:8000/.well-known/jwks.json")

    assert result.process.returncode == 1
    assert "AUTH_JWKS_URL names this machine" in result.process.stderr
    assert result.calls == []


@pytest.mark.parametrize("target", ["azure", "run"])
def test_missing_build_is_reported_with_its_make_command(deploy: Deploy, tmp_path: Path, target: str) -> None:
    absent = deploy(target, folder=tmp_path / "absent")
    empty = deploy(target, folder=tmp_path)

    cloud = {"run": "gcp"}.get(target, target)
    assert absent.process.stderr == f"{tmp_path / 'absent'} holds no build: run make build-{cloud} first\n"
    assert empty.process.stderr == f"{tmp_path} holds no build: run make build-{cloud} first\n"
    assert (absent.calls, empty.calls) == ([], [])


def test_another_clouds_build_is_not_deployed(deploy: Deploy, builds: Path) -> None:
    result = deploy("azure", folder=builds / "gcp")

    assert result.process.stderr == f"{builds / 'gcp'} holds no build: run make build-azure first\n"
    assert result.calls == []


# A failure stops the deployment


@pytest.mark.parametrize(
    ("target", "tool"), [("azure", "az"), ("gcp", "gcloud"), ("run", "gcloud"), ("oci", "fn")]
)
def test_failing_program_stops_the_deploy(deploy: Deploy, tools: Path, target: str, tool: str) -> None:
    (tools / f"{tool} fails").touch()

    result = deploy(target)

    assert result.process.stderr == f"{tool} failed, see above. Nothing after it was done.\n"
    assert result.process.returncode == 1
    assert len(result.calls) == 1
    assert not any(Path(path).exists() for path in result.calls[0]["files"])
