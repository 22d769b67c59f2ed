"""`make run` itself: what it says before it starts, and what it keeps to itself."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from local import __main__ as local
from local import database
from local.database import folders_to_open
from local.issuer import Issuer

PROJECT = Path(__file__).parent.parent


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    """`make run`'s command, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "local", "run"],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "8000.0", "٨"])
def test_a_malformed_port_is_explained(port: str) -> None:
    ended = run(PORT=port)

    assert ended.returncode == 1
    assert ended.stderr == f"PORT is {port!r}: use a number from 1 to 65535, as in make run PORT=8001\n"


def test_an_unreachable_database_is_explained_without_a_traceback() -> None:
    ended = run(DATABASE_URL="postgresql://orders_app:s3cret@127.0.0.1:1/orders")

    assert ended.returncode == 1
    assert ended.stderr.startswith("Your database cannot be used: ")
    assert "Connection refused" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "s3cret" not in ended.stderr


def test_a_malformed_setting_is_explained_before_serving(database: database.Urls) -> None:
    ended = run(DATABASE_URL=database.app, DB_POOL_MAX="many")

    assert ended.returncode == 1
    assert ended.stderr == "DB_POOL_MAX is 'many': use a whole number from 5 to 86400\n"


def test_a_database_without_the_schema_is_refused(database: database.Urls) -> None:
    ended = run(DATABASE_URL=database.app.replace("/orders?", "/postgres?"), OWNER_DATABASE_URL="")

    assert ended.returncode == 1
    assert "set OWNER_DATABASE_URL too" in ended.stderr


def test_a_password_is_kept_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FOLDER", tmp_path)
    (tmp_path / "env").write_text("an older one, open to everyone")

    local._write_private("env", "DATABASE_URL=...")

    assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o600
    for url in ("postgresql://orders_app:s3cret@db/orders", "postgresql://db/orders?password=s3cret&user=x"):
        block = local._block("http://127.0.0.1:8000", url, Issuer(tmp_path))
        assert "s3cret" not in block
        assert "***" in block


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_root_is_told_which_folders_would_be_opened(tmp_path: Path) -> None:
    closed, inner = tmp_path / "closed", tmp_path / "closed/inner"
    inner.mkdir(parents=True)
    closed.chmod(0o700)
    inner.chmod(0o755)

    named = folders_to_open(inner / "data")

    assert closed in named
    assert inner not in named
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
