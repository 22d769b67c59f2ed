"""Builds for Azure, Google Cloud and Oracle Cloud, and their deployment by those clouds' commands."""

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode

from chalicelib.settings.database import database_settings
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.http import cors_origin
from chalicelib.settings.startup import check_settings
from chalicelib.settings.table import PASSED_TO_OTHER_HOSTS
from chalicelib.settings.tokens import accepted_tokens
from deploy import sources

PROJECT = Path(__file__).parent.parent
NAME = "orders-api"
SHIM_FILES = {
    "azure": (
        "function_app.py",
        "host.json",
        "requirements.txt",
        "local.settings.example.json",
        ".funcignore",
    ),
    "gcp": ("main.py", "requirements.txt", "Dockerfile"),
    "oci": ("func.py", "requirements.txt", "func.yaml"),
}
"""The files of shims/<cloud> that a build contains; the first is the module that the runtime imports."""


def build(cloud: str, into: Path) -> None:
    """Write the folder that the cloud's command deploys and its runtime runs, unchanged."""
    from deploy import pins, sbom  # not needed for a deployment

    if into.is_dir() and any(into.iterdir()) and not _is_build(cloud, into):
        raise SystemExit(f"{into} is not a build of this project: empty it, or choose another folder")
    authority = sources.authority()
    shutil.rmtree(into, ignore_errors=True)
    (into / "shims").mkdir(parents=True)
    for name in SHIM_FILES[cloud]:
        shutil.copy(PROJECT / "shims" / cloud / name, into)
    for module in ("__init__.py", "gateway.py"):
        shutil.copy(PROJECT / "shims" / module, into / "shims")
    sources.copy(into, authority)
    pinned = pins.read(into / "requirements.txt")
    sbom.write(into, cloud, pinned, sbom.PYTHONS, authority=into / sources.AUTHORITY)
    unchecked = PycInvalidationMode.UNCHECKED_HASH
    # stripdir: the function's tracebacks would show this machine's path.
    if not compileall.compile_dir(into, quiet=1, invalidation_mode=unchecked, stripdir=into):
        raise SystemExit(f"{into} does not compile: see above")
    # Independent of the umask: the clouds run the files as another user than their owner.
    for path in (into, *into.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    print(f"{into} is ready")


def deploy(target: str, folder: Path) -> None:
    """Deploy the folder by its cloud's command: `azure`, `gcp` (Cloud Functions), `run` (Cloud Run), `oci`.

    Raises SystemExit before any change if something is missing.
    """
    cloud = "gcp" if target == "run" else target
    if not _is_build(cloud, folder):
        raise SystemExit(f"{folder} holds no build: run make build-{cloud} first")
    try:
        check_settings()
        cors_origin()
    except SettingsError as error:
        raise SystemExit(f"The function would not start. {error}") from None
    if not (os.environ.get("DATABASE_URL") or os.environ.get("DB_PASSWORD")):
        raise SystemExit(
            "DB_PASSWORD is not set: the password of DB_USER, or where a secret store has it: docs/secrets.md"
        )
    if "//127.0.0.1:" in accepted_tokens().jwks_url:
        raise SystemExit(
            "AUTH_JWKS_URL names this machine: these are the settings of make run (.local/env). "
            "Call make deploy-... from a shell that has not read them"
        )
    variables = {name: os.environ[name] for name in PASSED_TO_OTHER_HOSTS if os.environ.get(name)}
    TARGETS[target](folder, variables)


def _azure(folder: Path, variables: dict[str, str]) -> None:
    func = _tool("func", "npm install -g azure-functions-core-tools@4")
    az = _tool("az", "https://learn.microsoft.com/cli/azure/install-azure-cli")
    app = _variable("AZURE_FUNCTIONAPP", "the name of the function app")
    group = _variable("AZURE_RESOURCE_GROUP", "its resource group")
    set_settings = [az, "functionapp", "config", "appsettings", "set"]
    set_settings += ["--name", app, "--resource-group", group, "--output", "none"]
    # Without slotSetting, older versions of az make every setting one of the deployment slot.
    values = [{"name": name, "value": value, "slotSetting": False} for name, value in variables.items()]
    with _file(json.dumps(values)) as file:
        _run([*set_settings, "--settings", f"@{file}"], folder)
    _run([func, "azure", "functionapp", "publish", app, "--python", "--build", "remote"], folder)


def _cloud_functions(folder: Path, variables: dict[str, str]) -> None:
    version = f"python{sys.version_info.major}{sys.version_info.minor}"
    generation = ["--gen2", "--runtime", version, "--entry-point", "orders_api", "--trigger-http"]
    _gcloud(["functions", "deploy", NAME, *generation, "--timeout", "30s"], folder, variables)


def _cloud_run(folder: Path, variables: dict[str, str]) -> None:
    _gcloud(["run", "deploy", NAME, "--timeout", "30"], folder, variables)


def _gcloud(command: list[str], folder: Path, variables: dict[str, str]) -> None:
    gcloud = _tool("gcloud", "https://cloud.google.com/sdk/docs/install")
    project = _variable("GCP_PROJECT", "the project's id")
    region = _variable("GCP_REGION", "such as europe-west1")
    where = ["--project", project, "--region", region, "--source", str(folder.resolve())]
    # Concurrency equals functions-framework's threads; more threads would compete for one CPU.
    # Unauthenticated for Google's IAM: the API verifies the tokens itself.
    size = ["--memory", "512Mi", "--cpu", "1", "--concurrency", "4", "--allow-unauthenticated"]
    options = {"GCP_VPC_CONNECTOR": "--vpc-connector", "GCP_SERVICE_ACCOUNT": "--service-account"}
    chosen = [
        part for name, flag in options.items() if (value := os.environ.get(name)) for part in (flag, value)
    ]
    environment = {**variables, "THREADS": "4", "FORWARDED_ALLOW_IPS": ""}
    with _file(json.dumps(environment), ".yaml") as file:  # JSON is YAML
        _run([gcloud, *command, *where, *size, *chosen, "--env-vars-file", file, "--quiet"], folder)


def _oracle(folder: Path, variables: dict[str, str]) -> None:
    fn = _tool("fn", "https://fnproject.io/tutorials/install")
    app = _variable("OCI_APP", "the application of Oracle Functions, which must exist")
    if headers := [name for name in variables if name.startswith("OTEL_") and name.endswith("_HEADERS")]:
        raise SystemExit(
            f"{' and '.join(headers)} would appear on fn's command line, for every user of this machine to "
            "read. Send the metrics to a collector in the network, which adds the headers"
        )
    if database_settings().secret is None and (shown := variables.keys() & {"DATABASE_URL", "DB_PASSWORD"}):
        raise SystemExit(
            f"{' and '.join(sorted(shown))} would appear on fn's command line, for every user of this "
            "machine to read. Put the password into OCI Vault, and its OCID into DB_PASSWORD "
            "(docs/secrets.md)"
        )
    # Oracle Functions caches the image of a tag: each deployment needs a new tag.
    description = folder / "func.yaml"
    version = f"version: 0.0.{int(time.time())}"
    description.write_text(re.sub("(?m)^version: .*$", version, description.read_text()))
    _run([fn, "deploy", "--app", app], folder)
    for name, value in variables.items():
        _run([fn, "config", "function", app, NAME, name, value], folder)


TARGETS = {"azure": _azure, "gcp": _cloud_functions, "run": _cloud_run, "oci": _oracle}


def _is_build(cloud: str, folder: Path) -> bool:
    """Whether the folder is a build; another project's app.py and main.py are not."""
    return all((folder / name).is_file() for name in ("shims/gateway.py", "app.py", SHIM_FILES[cloud][0]))


def _tool(name: str, source: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is missing. To get it: {source}")
    return path


def _variable(name: str, meaning: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise SystemExit(f"{name} is not set: {meaning}")
    return value


@contextmanager
def _file(text: str, suffix: str = ".json") -> Iterator[str]:
    """A temporary file with mode 0600: values in arguments would show in the list of processes."""
    with tempfile.NamedTemporaryFile("w", suffix=suffix) as file:
        file.write(text)
        file.flush()
        yield file.name


def _run(command: list[str], folder: Path) -> None:
    print(f"{Path(command[0]).name} {' '.join(command[1:4])} ...", flush=True)
    done = subprocess.run(command, cwd=folder, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} failed, see above. Nothing after it was done.")
