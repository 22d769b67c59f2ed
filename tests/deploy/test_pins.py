"""Only packages with pinned versions and hashes are installed, from every requirements file."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pip
import pytest

from deploy import pins
from local import environments
from tests.support.builds import PROJECT, copy_of_project, python_m_deploy

RECIPE = (PROJECT / "Makefile").read_text()
LOCKED = re.findall(r"^\t\$\(LOCK\) .*-o (\S+)$", RECIPE, re.MULTILINE)
SHIPPED = (
    "requirements.txt",
    "deploy/requirements.txt",
    *(f"shims/{cloud}/requirements.txt" for cloud in ("azure", "gcp", "oci")),
)
PIN = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^@/\\]+)?( --hash=sha256:[0-9a-f]{64})+")
FORGED = "six==1.17.0 --hash=sha256:" + "0" * 64 + "\n"
UNHASHED = "six==1.17.0\n"


def test_make_lock_writes_every_requirements_file() -> None:
    folders = [PROJECT / name for name in ("bench", "deploy", "local", "migrations", "shims", "tests")]
    files = [*PROJECT.glob("*.txt"), *(path for folder in folders for path in folder.rglob("*.txt"))]

    assert sorted(LOCKED) == sorted(str(path.relative_to(PROJECT)) for path in files)
    assert {*environments.REQUIREMENTS.values()} <= {*LOCKED}


def test_every_dependency_group_is_locked() -> None:
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]

    assert {*re.findall(r"\$\(LOCK\) --group (\S+)", RECIPE)} == {*groups} - {
        "host"
    }  # part of azure, gcp and oci


@pytest.mark.parametrize("file", LOCKED)
def test_every_pin_is_a_version_with_hashes_only(file: str) -> None:
    """No path, index or option, so that every installation gets the same bytes from the same index."""
    text = (PROJECT / file).read_text().replace(" \\\n   ", "")

    for line in text.splitlines():
        assert PIN.fullmatch(line), line[:120]
    assert len(pins.read(PROJECT / file)) == len(text.splitlines()) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "version"),
    [
        ("x86_64-manylinux_2_28", "3.13"),
        ("aarch64-manylinux_2_28", "3.12"),
        ("x86_64-manylinux_2_28", "3.11"),
        ("aarch64-apple-darwin", "3.13"),
    ],
)
def test_every_package_installs_from_a_wheel(system: str, version: str, tmp_path: Path) -> None:
    """Every pin has a wheel; the test of `make lock` checks that all hashes are listed."""
    lines_by_pin = {str(pin): pin.line for file in SHIPPED for pin in pins.read(PROJECT / file)}
    union = tmp_path / "requirements.txt"
    union.write_text("\n".join(lines_by_pin.values()))
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--no-config", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--target", str(tmp_path / "packages")]
    command += ["--python-version", version, "--python-platform", system, "--requirement", str(union)]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "Would install" in result.stderr


@pytest.mark.slow
def test_make_refuses_to_install_unhashed_packages(tmp_path: Path) -> None:
    """Its environment gets this one's pip, because installing pip takes most of the time."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "requirements-dev.txt").write_text(UNHASHED)
    python = tmp_path / "python"
    without_pip = '[ "$2" != venv ] || set -- "$@" --without-pip'
    python.write_text(f'#!/bin/sh\n{without_pip}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "pip").symlink_to(Path(pip.__file__).parent)

    result = subprocess.run(
        ["make", ".venv/.installed", f"PYTHON={python}"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode != 0
    assert "hash" in result.stderr.lower()
    assert not [*tmp_path.glob(".venv/lib/*/site-packages/six*")]


@pytest.mark.slow
@pytest.mark.parametrize("pin", [FORGED, UNHASHED], ids=["forged", "without a hash"])
def test_environments_refuse_forged_and_unhashed_packages(
    pin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "PROJECT", tmp_path)
    for file in environments.REQUIREMENTS.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(pin)

    for cloud in environments.REQUIREMENTS:
        with pytest.raises(SystemExit, match=r"(?i)hash"):
            environments.environment(cloud)


@pytest.mark.slow
@pytest.mark.parametrize("pin", [FORGED, UNHASHED], ids=["forged", "without a hash"])
def test_aws_build_refuses_forged_and_unhashed_packages(pin: str, tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    (project / "deploy/requirements.txt").write_text(pin)

    result = python_m_deploy("build", "aws", project=project)

    assert result.returncode != 0
    assert "hash" in result.stderr.lower()
    assert not (project / "build/aws/package").exists()


def test_requirement_without_a_pinned_version_is_rejected(tmp_path: Path) -> None:
    for line in ("six>=1.17", "six", "six @ https://shop.example/six.whl"):
        (tmp_path / "requirements.txt").write_text(line)
        with pytest.raises(ValueError, match="pins no version"):
            pins.read(tmp_path / "requirements.txt")
