"""A test run that gets a signal stops its database servers, in each of its processes."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import until

PROJECT = Path(__file__).parents[2]
WAITS = """
import os, time
import pytest
from tests.support.servers import private_server

@pytest.mark.parametrize("number", range({processes}))
def test_waits(database, number):
    with private_server():
        open({folder!r} + f"/ready-{{number}}", "w").close()
        time.sleep(60)
"""


def servers(folder: Path) -> list[psutil.Process]:
    """PostgreSQL processes with data below this folder."""
    matches = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if (
            "postgres" in command
            and str(folder) in command
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            matches.append(process)
    return matches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_sent", "processes"),
    [(signal.SIGHUP, 1), (signal.SIGTERM, 2)],
    ids=["SIGHUP", "SIGTERM to two processes"],
)
def test_terminated_test_run_leaves_no_database_server(signal_sent: signal.Signals, processes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="order-api-run-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server's user must be able to enter it
        test = folder / "test_waits.py"
        test.write_text(WAITS.format(folder=name, processes=processes))
        options = ["-q", "-c", "pyproject.toml", "-p", "no:cacheprovider", "-p", "tests.conftest"]
        if processes > 1:
            options += ["-n", str(processes), "--dist", "load"]
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, test],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 (for nohup)
        ) as run:
            until(lambda: run.poll() is not None or len([*folder.glob("ready-*")]) == processes, 60)
            assert run.poll() is None, run.communicate()[0]
            assert len(servers(folder)) == 2 * processes
            run.send_signal(signal_sent)
            output, _ = run.communicate(timeout=60)

        with suppress(AssertionError):
            until(lambda: not servers(folder), 15)
        remaining = servers(folder)
        for process in remaining:
            process.kill()

        assert remaining == []
        assert "KeyboardInterrupt" in output
        assert run.returncode == pytest.ExitCode.INTERRUPTED
