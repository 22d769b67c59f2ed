"""A fresh copy of the project, in which commands from the documents run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.postgres_server import EMBEDDED

PROJECT = Path(__file__).parents[2]


def clean_environment() -> dict[str, str]:
    """The environment without the variables that other tests set for the API."""
    prefixes = ("AUTH_", "AWS_", "COGNITO_", "DATABASE_URL", "DB_", "DOCS", "MAKE")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def shell(command: str, folder: Path) -> str:
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def shell_with_psql(commands: str, folder: Path = PROJECT, **variables: str) -> str:
    """The output of the commands, in a shell that has PostgreSQL's programs and stops at the first error."""
    path = f"{EMBEDDED}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=clean_environment() | {"PATH": path} | variables,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def cloned() -> Iterator[Path]:
    """A copy of the project as after `git clone`, with the virtual environments that these tests have."""
    with tempfile.TemporaryDirectory(prefix="order-api-clone-", ignore_cleanup_errors=True) as parent:
        folder = Path(parent) / "ecommerce-order-api"
        ignored = shutil.ignore_patterns(".*_cache", ".venv", ".local", ".git", "build")
        shutil.copytree(PROJECT, folder, ignore=ignored)
        assert sys.prefix != sys.base_prefix, "run the tests in a virtual environment: make test"
        (Path(sys.prefix) / ".installed").touch()
        (folder / ".venv").symlink_to(sys.prefix)
        venvs = PROJECT / "build/venvs"
        venvs.mkdir(parents=True, exist_ok=True)
        (folder / "build").mkdir()
        (folder / "build/venvs").symlink_to(venvs)
        yield folder
