"""Serves a built folder with its cloud's own Python runtime, on this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from local import azure_front, front, oci_front
from local.environments import PROJECT, environment

Process = subprocess.Popen[bytes]
Running = AbstractContextManager[Process]
Command = Sequence[str | Path]
Variables = Mapping[str, str]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_TIMEOUT = 60
"""Seconds in which a host must begin to listen."""


@contextmanager
def serving(cloud: str, built: Path, variables: Variables, host: str, port: int) -> Iterator[Process]:
    """Run the runtime of `aws` (`chalice local`), `azure`, `gcp`, `lambda` or `oci` at the address.

    Raises SystemExit when it ends before it listens. Its environment is `variables`, PATH, HOME and the like.
    """
    python = Path(sys.executable) if cloud == "aws" else environment(cloud)
    with RUNTIMES[cloud](python, built.resolve(), variables, host, port) as process:
        yield process


def _chalice(python: Path, _: Path, variables: Variables, host: str, port: int) -> Running:
    """`chalice local` on the project itself. No reloading, because the database writes into the project."""
    options = ["--no-autoreload", "--host", host, "--port", str(port)]
    # Chalice warns that every request will be authorized; app.py verifies the tokens itself.
    quiet = {**variables, "PYTHONWARNINGS": "ignore:CognitoUserPoolAuthorizer"}
    return _server([python.parent / "chalice", "local", *options], PROJECT, quiet, host, port)


def _gcp(python: Path, built: Path, variables: Variables, host: str, port: int) -> Running:
    """functions-framework with its production server, gunicorn; it trusts no proxy on this machine."""
    options = ["--source", "main.py", "--target", "orders_api", "--host", host, "--port", str(port)]
    trusting_no_proxy = {**variables, "FORWARDED_ALLOW_IPS": ""}
    return _server([python.parent / "functions-framework", *options], built, trusting_no_proxy, host, port)


@contextmanager
def _azure(python: Path, built: Path, variables: Variables, host: str, port: int) -> Iterator[Process]:
    """The function app through the real azure-functions package; the Functions host itself is not on PyPI."""
    with tempfile.TemporaryDirectory(prefix="orders-api-azure-") as folder:
        listener = Path(folder) / "worker.sock"
        with_path = {**variables, "PYTHONPATH": f"{built}{os.pathsep}{PROJECT}"}
        with _process([python, "-P", "-m", "local.azure_host", listener], built, with_path) as process:
            _wait(process, lambda: oci_front.connect(listener).close())
            with _in_a_thread(azure_front.serve(listener, host, port)):
                yield process


def _lambda(python: Path, built: Path, variables: Variables, host: str, port: int) -> Running:
    """The zip under awslambdaric, behind a gateway made from the template beside it."""
    command: Command = [sys.executable, "-P", "-m", "local.lambda_host", python, built, host, str(port)]
    return _server(command, PROJECT, {**variables, "PYTHONPATH": str(PROJECT)}, host, port)


@contextmanager
def _oci(python: Path, built: Path, variables: Variables, host: str, port: int) -> Iterator[Process]:
    """fdk's server on its unix socket, behind a front in place of Fn's."""
    with tempfile.TemporaryDirectory(prefix="orders-api-oci-") as folder:
        listener = Path(folder) / "fn.sock"
        # PYTHONPATH as the fn CLI's Dockerfile for Python sets it.
        fn = {"FN_FORMAT": "http-stream", "FN_LISTENER": f"unix:{listener}", "PYTHONPATH": str(built)}
        command: Command = [python.parent / "fdk", "func.py", "orders_api"]
        with _process(command, built, {**variables, **fn}) as process:
            _wait(process, lambda: oci_front.connect(listener).close())
            with _in_a_thread(oci_front.serve(listener, host, port)):
                yield process


@contextmanager
def _server(command: Command, folder: Path, variables: Variables, host: str, port: int) -> Iterator[Process]:
    """A child that listens at the address by itself."""
    with _process(command, folder, variables) as process:
        _wait(process, lambda: socket.create_connection((host, port), 1).close())
        yield process


@contextmanager
def _in_a_thread(server: front.Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def _process(command: Command, folder: Path, variables: Variables) -> Iterator[Process]:
    """A child in `folder` that is ended by `end` and gets no other signal.

    A terminal's Ctrl-C together with the arbiter's own signal deadlocks a worker of gunicorn (27.0.1)
    that is already shutting down.
    """
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    child_variables = {**inherited, **variables}
    process = None
    try:
        with _signals_held():
            process = subprocess.Popen(command, cwd=folder, env=child_variables, start_new_session=True)  # noqa: S603
        yield process
    finally:
        if process:
            end(process)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delays the signals that end this process until the end of the block.

    Between the fork of a child and Popen's return the child could not be stopped.
    """
    received: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # where signals are handled
    handlers = {number: signal.getsignal(number) for number in ENDING if in_main}
    replaced = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in replaced:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        try:
            for number, handler in reversed(replaced.items()):  # SIGINT last: it is the most frequent
                signal.signal(number, handler)
        finally:
            for caught in received[:1]:
                signal.raise_signal(caught)


def end(process: Process) -> None:
    """SIGTERM, and SIGKILL after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(process: Process, connect: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            connect()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The host did not start: see its output above") from None
            time.sleep(0.05)


Runtime = Callable[[Path, Path, Variables, str, int], Running]
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
