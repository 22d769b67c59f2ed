"""A run of the tests that is told to end takes its database servers with it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).parents[2]
WAITS = """
import time
from tests.support.servers import private_server

def test_waits(database):
    with private_server():
        open({ready!r}, "w").close()
        time.sleep(60)
"""


def servers(folder: Path) -> list[psutil.Process]:
    """PostgreSQL's processes whose data is below this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if (
            "postgres" in command
            and str(folder) in command
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP], ids=lambda told: told.name)
def test_no_server_outlives_a_run_that_is_told_to_end(told: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="order-api-run-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' own user passes through it
        test, ready = folder / "test_waits.py", folder / "ready"
        test.write_text(WAITS.format(ready=str(ready)))
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", test],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert run.poll() is None, run.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert len(servers(folder)) == 2
            run.send_signal(told)
            said, _ = run.communicate(timeout=60)

        left = servers(folder)
        for process in left:
            process.kill()

        assert left == []
        assert "KeyboardInterrupt" in said
        assert run.returncode == pytest.ExitCode.INTERRUPTED
