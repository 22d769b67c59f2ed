"""Each cloud's own Python runtime, serving the folder that was built for it, on this machine."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from local import front, oci_front
from local.environments import PROJECT, environment

LONGEST_START = 60
"""Seconds in which a host must begin to listen."""


@contextmanager
def serving(cloud: str, built: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """The runtime of `aws` (`chalice local`), `azure`, `gcp`, `lambda` or `oci` listens at the address.

    Raises SystemExit when it ends before it listens. Of our own environment it sees `variables` alone.
    """
    python = Path(sys.executable) if cloud == "aws" else environment(cloud)
    with RUNTIMES[cloud](python, built.resolve(), variables, host, port):
        yield


@contextmanager
def _chalice(python: Path, _: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """`chalice local`, on the project itself; it would start anew at every write of the database below it."""
    own = ["--no-autoreload", "--host", host, "--port", str(port)]
    command: list[str | Path] = [python.parent / "chalice", "local", *own]
    with _process(command, PROJECT, variables) as process:
        _wait(process, lambda: socket.create_connection((host, port), 1).close())
        yield


@contextmanager
def _gcp(python: Path, built: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """functions-framework with its production server, gunicorn."""
    program = python.parent / "functions-framework"
    command: list[str | Path] = [
        program,
        "--source",
        "main.py",
        "--target",
        "orders_api",
        "--host",
        host,
        "--port",
        str(port),
    ]
    with _process(command, built, variables) as process:
        _wait(process, lambda: socket.create_connection((host, port), 1).close())
        yield


@contextmanager
def _azure(python: Path, built: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """The function app through the real azure-functions package; the Functions host itself is not on PyPI."""
    paths = {"PYTHONPATH": f"{built}{os.pathsep}{PROJECT}"}
    command: list[str | Path] = [python, "-P", "-m", "local.azure_host", host, str(port)]
    with _process(command, built, {**variables, **paths}) as process:
        _wait(process, lambda: socket.create_connection((host, port), 1).close())
        yield


@contextmanager
def _lambda(python: Path, built: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """The zip under awslambdaric, behind a gateway made from the template beside it."""
    program: list[str | Path] = [sys.executable, "-P", "-m", "local.lambda_host"]
    command = [*program, python, built, host, str(port)]
    with _process(command, PROJECT, {**variables, "PYTHONPATH": str(PROJECT)}) as process:
        _wait(process, lambda: socket.create_connection((host, port), 1).close())
        yield


@contextmanager
def _oci(python: Path, built: Path, variables: Mapping[str, str], host: str, port: int) -> Iterator[None]:
    """fdk's server on its unix socket, behind a front that does what Fn's does."""
    with tempfile.TemporaryDirectory(prefix="orders-api-oci-") as folder:
        listener = Path(folder) / "fn.sock"
        # PYTHONPATH as the fn CLI's Dockerfile for Python sets it.
        own = {"FN_FORMAT": "http-stream", "FN_LISTENER": f"unix:{listener}", "PYTHONPATH": str(built)}
        command: list[str | Path] = [python.parent / "fdk", "func.py", "orders_api"]
        with _process(command, built, {**variables, **own}) as process:
            _wait(process, lambda: oci_front.connect(listener).close())
            with _in_a_thread(oci_front.serve(listener, host, port)):
                yield


@contextmanager
def _in_a_thread(server: front.Server) -> Iterator[None]:
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _process(
    command: Sequence[str | Path], folder: Path, variables: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A child in `folder` that gets SIGTERM, and SIGKILL after ten seconds."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    process = subprocess.Popen(command, cwd=folder, env={**inherited, **variables})  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", knock: Callable[[], None]) -> None:
    deadline = time.monotonic() + LONGEST_START
    while True:
        try:
            knock()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The host did not start: its own words are above") from None
            time.sleep(0.05)


Runtime = Callable[[Path, Path, Mapping[str, str], str, int], AbstractContextManager[None]]
RUNTIMES: dict[str, Runtime] = {
    "aws": _chalice,
    "azure": _azure,
    "gcp": _gcp,
    "lambda": _lambda,
    "oci": _oci,
}
FOLDERS = {
    "aws": "app.py",
    "azure": "build/azure",
    "gcp": "build/gcp",
    "lambda": "build/aws",
    "oci": "build/oci",
}
"""What each runtime serves."""
