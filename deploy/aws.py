"""Builds for AWS: the zip, the template, and the folder that `chalice deploy` and SAM deploy from."""

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import chalice.app

from deploy import archive, policy, sources
from deploy.aws_configuration import configuration, configure_app, refuse_without_snapstart

Json = dict[str, Any]

PROJECT = Path(__file__).parent.parent
REQUIREMENTS = PROJECT / "deploy" / "requirements.txt"
"""The packages in the zip: those of requirements.txt without SQLModel, which only a build needs."""
ARCHITECTURES = {"arm64": "aarch64", "x86_64": "x86_64"}
"""Lambda's names of the architectures, and the wheels' names."""
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
    _vendor(into / "vendor", architecture)
    sources.copy(into, authority)
    _compile(into)
    _configure(into / ".chalice", stage, config)
    package(into, stage, config, snapstart=snapstart)
    zipped = into / "package" / "deployment.zip"
    if faults := archive.faults(zipped, REQUIREMENTS, architecture):
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise SystemExit("\n  ".join(["The zip would not run on Lambda:", *faults[:20], *more]))
    _write_sbom(zipped, into)
    print(f"Ready: {zipped}, {zipped.with_name('sam.json')}")


def _write_sbom(zipped: Path, folder: Path) -> None:
    """The SBOM beside the zip: the vendored packages, and Chalice's runtime, which its packager adds."""
    from deploy import pins, sbom

    pinned = pins.read(REQUIREMENTS)
    pinned += [pin for pin in pins.read(PROJECT / "requirements-dev.txt") if pin.name == "chalice"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    where = {"artifact": zipped, "packages": folder / "vendor", "authority": folder / sources.AUTHORITY}
    sbom.write(zipped.parent, "aws", pinned, [python], **where)


def _clear(into: Path) -> None:
    """Empty the folder. Raises SystemExit unless it is a build: an empty requirements.txt marks one."""
    mark = into / "requirements.txt"
    is_marked = mark.is_file() and mark.stat().st_size == 0
    own = ("chalicelib/settings/secret_stores.py", "chalicelib/stores.py")  # the second: builds of 1.0.0
    is_build = is_marked and (list(into.iterdir()) == [mark] or any((into / name).is_file() for name in own))
    if into.is_dir() and any(into.iterdir()) and not is_build:
        raise SystemExit(f"{into} is not a build of this project: empty it, or choose another folder")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    # Empty, because Chalice would install its packages again: vendor/ has them, compiled.
    mark.touch()


def _vendor(into: Path, architecture: str) -> None:
    """Install the pinned wheels for Lambda's system and the running Python's version."""
    command: list[str | Path] = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config"]
    command += ["--target", into.resolve(), "--requirement", REQUIREMENTS, "--require-hashes"]
    command += ["--no-deps", "--link-mode", "copy"]
    command += ["--python", sys.executable, *wheels(architecture, sys.version_info[:2])]
    run(command, PROJECT)
    (into / ".lock").unlink(missing_ok=True)
    for path in [path for pattern in archive.LEFT_OUT for path in into.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def wheels(architecture: str, python: tuple[int, int]) -> list[str]:
    """uv's options for wheels that Lambda can load: its glibc is 2.26 up to Python 3.11, then 2.34."""
    system = "manylinux2014" if python < (3, 12) else "manylinux_2_34"
    return ["--only-binary", ":all:", "--python-platform", f"{ARCHITECTURES[architecture]}-{system}"]


def _compile(into: Path) -> None:
    """Write bytecode that Python uses without checking its source.

    Lambda's disk is read-only, and a zip stores no exact timestamps to check against.
    """
    for folder in (into / "vendor", into / "chalicelib"):
        compileall.compile_dir(folder, quiet=2, stripdir=str(folder), invalidation_mode=UNCHECKED)
    # Chalice adds these sources itself, and everything in vendor/: their bytecode goes into vendor/.
    chalice_folder = Path(chalice.app.__file__).parent
    for name, source in (
        ("app.py", into / "app.py"),
        ("chalice/__init__.py", chalice_folder / "__init__.py"),
        ("chalice/app.py", chalice_folder / "app.py"),
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
    # Outside the build, so that a new build knows what is deployed.
    deployed = PROJECT / ".chalice" / "deployed"
    deployed.mkdir(exist_ok=True)
    (into / "deployed").symlink_to(deployed.resolve(), target_is_directory=True)


def _write_private(path: Path, content: Json) -> None:
    """Readable by its owner only: DB_PASSWORD may be the password itself."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(content, file, indent=2)


def package(into: Path, stage: str, config: Json, *, snapstart: bool) -> None:
    """`chalice package` makes the zip and the template; `chalice deploy` then uses the same zip."""
    from deploy import template

    additions = into / "template-additions.json"
    merged = template.additions({**config, **config["stages"][stage]}, snapstart=snapstart)
    additions.write_text(json.dumps(merged, indent=2))
    # Chalice needs a region only for the names of AWS's services.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    command: list[str | Path] = [chalice_command(), "package", "--stage", stage]
    command += ["--merge-template", additions.name, "package"]
    run(command, into, AWS_DEFAULT_REGION=region)
    zipped = into / "package" / "deployment.zip"
    archive.make_readable(zipped)
    (deployment,) = (into / ".chalice" / "deployments").glob("*.zip")
    shutil.copy(zipped, deployment)
    if snapstart:
        _publish_each_change(into / "package")


def _publish_each_change(package: Path) -> None:
    """Have SAM publish a version whenever the zip or the template, with its settings, has changed.

    By itself SAM ignores a changed value of a parameter (serverless-application-model, issue 3820).
    """
    from deploy import template

    path = package / "sam.json"
    content = path.read_bytes() + (package / "deployment.zip").read_bytes()
    packaged = json.loads(path.read_text())
    function = packaged["Resources"][template.FUNCTION]["Properties"]
    function["AutoPublishCodeSha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(packaged, indent=2))


def chalice_command() -> Path:
    return Path(sys.executable).with_name("chalice")


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> None:
    """Run the command with its output shown. Raises SystemExit with its exit status."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.returncode)
