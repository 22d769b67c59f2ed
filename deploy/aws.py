"""Builds for AWS: the zip, the template and the folder from which `chalice deploy` and SAM deploy."""

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import chalice.app

from chalicelib.settings.currency import default_currency
from chalicelib.settings.environment import SettingsError, text
from chalicelib.settings.http import cors_origin
from chalicelib.settings.identity_provider import user_pools
from chalicelib.settings.table import EVERY_HOST, SETTINGS
from deploy import archive, policy, sources

Json = dict[str, Any]

PROJECT = Path(__file__).parent.parent
REQUIREMENTS = PROJECT / "deploy" / "requirements.txt"
"""What the zip holds: requirements.txt without what the build has compiled away."""
ARCHITECTURES = {"arm64": "aarch64", "x86_64": "x86_64"}
"""Lambda's names of them, and the wheels'."""
HANDED_ON = [name for name, setting in SETTINGS.items() if setting.read_by == EVERY_HOST]
"""The variables that the function gets from the environment of the build."""
NO_USER_POOL = "arn:aws:cognito-idp:us-east-1:000000000000:userpool/us-east-1_none"
"""Stands in where none is set while a template is packaged: there it is a parameter."""
UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def build(into: Path, stage: str, architecture: str, *, snapstart: bool = False) -> None:
    """Write `into`: sources, vendored packages, configuration, and package/ (deployment.zip, sam.json)."""
    if snapstart:
        refuse_without_snapstart(sys.version_info[:2])
    config = configuration(stage, architecture)
    configure_app(config["stages"][stage])
    authority = sources.authority()
    print(f"Building {into}: stage {stage}, {architecture}, {archive.runtime()}", flush=True)
    _clear(into)
    sources.copy(into, authority)
    _vendor(into / "vendor", architecture)
    _compile(into)
    _configure(into / ".chalice", stage, config)
    package(into, stage, config, snapstart=snapstart)
    zipped = into / "package" / "deployment.zip"
    if found := archive.faults(zipped, REQUIREMENTS, architecture):
        more = [f"and {len(found) - 20} more"] if len(found) > 20 else []
        raise SystemExit("\n  ".join(["The zip would not run on Lambda:", *found[:20], *more]))
    _list_what_is_in(zipped, into)
    print(f"Ready: {zipped}, {zipped.with_name('sam.json')}")


def _list_what_is_in(zipped: Path, folder: Path) -> None:
    """The SBOM beside the zip: what is vendored, and Chalice's runtime, which its packager puts in."""
    from deploy import pins, sbom

    pinned = pins.read(REQUIREMENTS)
    pinned += [pin for pin in pins.read(PROJECT / "requirements-dev.txt") if pin.name == "chalice"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    where = {"artifact": zipped, "packages": folder / "vendor", "authority": folder / sources.AUTHORITY}
    sbom.write(zipped.parent, "aws", pinned, [python], **where)


def configuration(stage: str, architecture: str) -> Json:
    """config.json with this stage alone, and with what the environment says. Refuses what AWS cannot have."""
    provider = text("AUTH_PROVIDER")
    if provider != "cognito":
        raise SystemExit(
            f"AUTH_PROVIDER is {provider!r}: on AWS it is API Gateway that checks the tokens, and it knows "
            "Cognito's only. Unset it, or deploy to another cloud"
        )
    config: Json = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    if stage not in config["stages"]:
        raise SystemExit(f"STAGE is {stage!r}: .chalice/config.json has {', '.join(config['stages'])}")
    chosen = config["stages"][stage]
    chosen["subnet_ids"] = _listed("SUBNET_IDS") or chosen["subnet_ids"]
    chosen["security_group_ids"] = _listed("SECURITY_GROUP_IDS") or chosen["security_group_ids"]
    if bool(chosen["subnet_ids"]) != bool(chosen["security_group_ids"]):
        raise SystemExit(
            "SUBNET_IDS and SECURITY_GROUP_IDS go together: set both, comma-separated, or neither"
        )
    variables = {name: os.environ[name] for name in HANDED_ON if os.environ.get(name)}
    if variables:
        chosen["environment_variables"] = variables
    return {**config, "lambda_architecture": architecture, "stages": {stage: chosen}}


def refuse_without_snapstart(python: tuple[int, int]) -> None:
    """Raises SystemExit for a Python of whose functions Lambda takes no snapshots."""
    if python < (3, 12):
        raise SystemExit(
            "SNAPSTART=on needs Python 3.12 or later, and the Python that builds is the runtime that is "
            f"deployed: this is {python[0]}.{python[1]}. For another: make clean, then make PYTHON=python3.12"
        )


def refuse_snapstart_by_chalice(folder: Path) -> None:
    """Raises SystemExit for a build with snapshots: `chalice deploy` would leave them out without a word."""
    template = folder / "package" / "sam.json"
    if template.exists() and "SnapStart" in template.read_text():
        raise SystemExit(
            "SNAPSTART=on needs VIA=sam: the snapshots are taken of published versions, and chalice deploy "
            "publishes none. Add VIA=sam, or leave out SNAPSTART=on"
        )


def _listed(name: str) -> list[str]:
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def _clear(into: Path) -> None:
    """An empty folder but for our mark, an empty requirements.txt; never somebody else's folder."""
    mark = into / "requirements.txt"
    is_marked = mark.is_file() and mark.stat().st_size == 0
    is_ours = is_marked and (
        list(into.iterdir()) == [mark] or (into / "chalicelib/settings/secret_stores.py").is_file()
    )
    if into.is_dir() and any(into.iterdir()) and not is_ours:
        raise SystemExit(f"{into} is not a build of ours: empty it, or choose another folder")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    # What it would name is in vendor/, compiled; Chalice would install it a second time.
    mark.touch()


def _vendor(into: Path, architecture: str) -> None:
    """Install the pinned wheels for Lambda: not for this machine, but for this Python."""
    command: list[str | Path] = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config"]
    command += ["--target", into.resolve(), "--requirement", REQUIREMENTS, "--require-hashes"]
    command += ["--no-deps", "--link-mode", "copy"]
    command += ["--python", sys.executable, *wheels(architecture, sys.version_info[:2])]
    run(command, PROJECT)
    (into / ".lock").unlink(missing_ok=True)


def wheels(architecture: str, python: tuple[int, int]) -> list[str]:
    """uv's options for wheels that Lambda can load: its glibc is 2.26 up to Python 3.11, 2.34 after it."""
    system = "manylinux2014" if python < (3, 12) else "manylinux_2_34"
    return ["--only-binary", ":all:", "--python-platform", f"{ARCHITECTURES[architecture]}-{system}"]


def _compile(into: Path) -> None:
    """Bytecode that is used as it is: Lambda's disk cannot be written, and a zip keeps no exact times."""
    for folder in (into / "vendor", into / "chalicelib"):
        compileall.compile_dir(folder, quiet=2, stripdir=str(folder), invalidation_mode=UNCHECKED)
    # Chalice ships these sources by itself, and everything that is in vendor/: so also their bytecode.
    own = Path(chalice.app.__file__).parent
    for name, source in (
        ("app.py", into / "app.py"),
        ("chalice/__init__.py", own / "__init__.py"),
        ("chalice/app.py", own / "app.py"),
    ):
        compiled = into / "vendor" / cache_from_source(name)
        py_compile.compile(str(source), str(compiled), name, doraise=True, invalidation_mode=UNCHECKED)


def _configure(into: Path, stage: str, config: Json) -> None:
    into.mkdir()
    chosen = config["stages"][stage]
    _write_private(into / "config.json", config)
    _write_private(
        into / f"policy-{stage}.json", policy.of_stage(PROJECT / ".chalice" / f"policy-{stage}.json", chosen)
    )
    # What is deployed must be remembered when the build is made anew.
    deployed = PROJECT / ".chalice" / "deployed"
    deployed.mkdir(exist_ok=True)
    (into / "deployed").symlink_to(deployed.resolve(), target_is_directory=True)


def _write_private(path: Path, content: Json) -> None:
    """For its owner's eyes: DB_PASSWORD may be the password itself."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(content, file, indent=2)


def package(into: Path, stage: str, config: Json, *, snapstart: bool) -> None:
    """`chalice package` makes the zip and the template; `chalice deploy` then takes that very zip."""
    from deploy import template

    additions = into / "template-additions.json"
    merged = template.additions({**config, **config["stages"][stage]}, snapstart=snapstart)
    additions.write_text(json.dumps(merged, indent=2))
    # The region is only asked for the names of AWS's own services.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    command: list[str | Path] = [chalice_command(), "package", "--stage", stage]
    command += ["--merge-template", additions.name, "package"]
    run(command, into, AWS_DEFAULT_REGION=region)
    zipped = into / "package" / "deployment.zip"
    archive.let_everybody_read(zipped)
    (to_be_deployed,) = (into / ".chalice" / "deployments").glob("*.zip")
    shutil.copy(zipped, to_be_deployed)
    if snapstart:
        _publish_what_changes(into / "package")


def _publish_what_changes(package: Path) -> None:
    """Have SAM publish a version for every other zip and every other template, which has our settings in it.

    By itself it would not for another value of a parameter (serverless-application-model, issue 3820).
    """
    from deploy import template

    path = package / "sam.json"
    content = path.read_bytes() + (package / "deployment.zip").read_bytes()
    packaged = json.loads(path.read_text())
    function = packaged["Resources"][template.FUNCTION]["Properties"]
    function["AutoPublishCodeSha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(packaged, indent=2))


def configure_app(chosen: Mapping[str, Any]) -> None:
    """Set what app.py reads when it is imported, as it was built: `chosen` is a stage of config.json.

    Raises SystemExit on a value that it would refuse.
    """
    variables: dict[str, str] = chosen.get("environment_variables", {})
    os.environ["COGNITO_USER_POOL_ARN"] = variables.get("COGNITO_USER_POOL_ARN", NO_USER_POOL)
    os.environ["CORS_ORIGIN"] = variables.get("CORS_ORIGIN", "")
    try:
        user_pools(), cors_origin(), default_currency()
    except SettingsError as error:
        raise SystemExit(str(error)) from None


def chalice_command() -> Path:
    return Path(sys.executable).with_name("chalice")


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> None:
    """Run it in the open; when it fails, its own words are the message."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.returncode)
