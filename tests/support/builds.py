"""Builds of the AWS package, as `make build-aws` makes them."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chalicelib.settings.table import SETTINGS

PROJECT = Path(__file__).parents[2]
ARCHITECTURE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
"""This machine's architecture, as Lambda names it."""
AWS_PREFIXES = ("AWS_", "SECURITY_", "SUBNET_")


@dataclass(frozen=True)
class AwsBuild:
    folder: Path

    @property
    def zip(self) -> Path:
        return self.folder / "package" / "deployment.zip"

    @property
    def template(self) -> Path:
        return self.folder / "package" / "sam.json"


def python_m_deploy(
    *arguments: str | Path, variables: Mapping[str, str] | None = None, project: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m deploy` with these settings and none from the environment."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS and not name.startswith(AWS_PREFIXES)
    }
    return subprocess.run(
        [sys.executable, "-m", "deploy", *arguments],
        cwd=project,
        env={**inherited, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def build_aws(
    folder: Path, architecture: str = ARCHITECTURE, stage: str = "dev", **variables: str
) -> AwsBuild:
    arguments = ("--into", folder, "--arch", architecture, "--stage", stage)
    result = python_m_deploy("build", "aws", *arguments, variables=variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return AwsBuild(folder)


def copy_of_project(folder: Path) -> Path:
    project = folder / "project"
    shutil.copytree(
        PROJECT,
        project,
        ignore=shutil.ignore_patterns(".git", ".venv", ".local", "build", ".*_cache", ".hypothesis"),
    )
    return project
