"""The machine, time and commit of a run."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bench import contenders
from bench.contenders import PROJECT, Contender

REPORTED_PACKAGES = {
    *("psycopg2-binary", "sqlmodel", "sqlalchemy", "pydantic", "uuid-utils"),
    *("fastapi", "starlette", "mangum", "uvicorn", "uvloop", "pyjwt", "aws-lambda-powertools"),
}
"""Packages whose version may matter to a reader; results.json has all of them."""


def described(command: str) -> dict[str, str]:
    """The header of a report."""
    return {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def versions(contender: Contender) -> str:
    packages = contenders.packages(contender)
    return ", ".join(
        f"{name} {version}" for name, version in packages.items() if name.lower() in REPORTED_PACKAGES
    )


def _commit() -> str:
    if not shutil.which("git") or not (PROJECT / ".git").exists():
        return "unknown"
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}{' with changes' if changed else ''}" if commit else "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip()


def _processor() -> str:
    """The model's name from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
