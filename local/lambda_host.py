"""Serves the Lambda zip on this machine, in place of Lambda and API Gateway.

The function runs under AWS's own Runtime Interface Client (awslambdaric), in an environment that contains
nothing else, in its unzipped, read-only folder. This process implements Lambda's Runtime API
(https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html) and API Gateway, and verifies the tokens.
"""

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

from chalicelib.settings.environment import SettingsError
from chalicelib.settings.tokens import accepted_tokens
from local import front
from local.api_gateway import ApiGateway, Json, of_type

MAX_INSTANCES = 4
"""Processes that run concurrently; further requests wait."""
START_TIMEOUT = 50
"""Seconds in which an instance must request its first invocation."""
INTEGRATION_TIMEOUT = 29
"""Seconds that API Gateway waits for a function."""
MAX_RESULT = 6 * 1024 * 1024 + 100
ENDING = ("/runtime/init/error", "/runtime/restore/error")
"""Paths of the error reports that a process sends before it exits; the exit itself is handled."""
LAMBDA_ARCHITECTURES = {"aarch64": "arm64"}
"""Linux's names of machines to Lambda's, where they differ."""
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


class Instance:
    """One process of the function, and its Runtime API, which serves one invocation after the other."""

    def __init__(self, command: list[str | Path], folder: Path, variables: Mapping[str, str]) -> None:
        self.calls: Queue[tuple[Mapping[str, str], bytes]] = Queue()
        self.results: Queue[bytes] = Queue()
        self.ready = threading.Semaphore(0)
        """Released when the process requests an invocation, and when it has exited."""
        self._api = ThreadingHTTPServer(("127.0.0.1", 0), partial(_RuntimeApi, self))
        threading.Thread(target=self._api.serve_forever, args=[0.05], daemon=True).start()
        address = {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._api.server_port}"}
        self._process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env={**variables, **address},
            stdout=sys.stderr,
            process_group=0,  # the terminal's Ctrl-C is for this process
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def invoke(self, event: bytes, arn: str, seconds: float) -> bytes:
        """The function's result, or Lambda's error JSON if the process exited without a result.

        Raises TimeoutError without either after `seconds`.
        """
        headers = {
            "Lambda-Runtime-Aws-Request-Id": str(uuid4()),
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": arn,
        }
        self.calls.put((headers, event))
        try:
            return self.results.get(timeout=seconds)
        except Empty:
            self.stop()
            raise TimeoutError from None

    def wait_until_ready(self) -> bool:
        """Waits until the process requests its next invocation; False when it has exited."""
        return self.ready.acquire(timeout=START_TIMEOUT) and self.is_alive()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._api.shutdown()
        self._api.server_close()

    def _watch(self) -> None:
        status = self._process.wait()
        self.results.put(_failed(f"Runtime exited with status {status}"))
        self.ready.release()


class _RuntimeApi(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, instance: Instance, *args: Any) -> None:
        self._instance = instance
        super().__init__(*args)

    def do_GET(self) -> None:
        """The next invocation; the process waits here until there is one. A snapshot is restored at once."""
        if self.path.endswith("/runtime/restore/next"):
            self._send(200, b"{}")
            return
        self._instance.ready.release()
        headers, event = self._instance.calls.get()
        self._send(200, event, {"Content-Type": "application/json", **headers})

    def do_POST(self) -> None:
        """A result or an error; local/api_gateway.py distinguishes them by their members."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) > MAX_RESULT:
            self._instance.results.put(_failed("Response payload size exceeded maximum allowed payload size"))
            self._send(413, b"{}")
            return
        if not self.path.endswith(ENDING):
            self._instance.results.put(body)
        self._send(202, b"{}")

    def log_message(self, *_arguments: Any) -> None:
        pass

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Function:
    """The deployed function: one instance for each concurrent request, up to MAX_INSTANCES."""

    def __init__(self, properties: Json, python: Path, folder: Path, variables: Mapping[str, str]) -> None:
        self._command: list[str | Path] = [python, "-m", "awslambdaric", properties["Handler"]]
        self._folder = folder
        self._timeout: int = properties["Timeout"]
        self._variables = {**variables, **_lambda_variables(properties, folder, variables)}
        self._free = threading.Semaphore(MAX_INSTANCES)
        self._idle: list[Instance] = []
        self._all: list[Instance] = []

    def start(self) -> None:
        """Start one instance. Raises SystemExit when it fails."""
        first = self._instance()
        if not first.is_alive():
            raise SystemExit("The function did not start: see its output above")
        self._idle.append(first)

    def invoke(self, event: bytes) -> bytes:
        """The result, or Lambda's error JSON. Raises TimeoutError after INTEGRATION_TIMEOUT."""
        with self._free:
            instance = self._instance()
            name = self._variables["AWS_LAMBDA_FUNCTION_NAME"]
            arn = f"arn:aws:lambda:{self._variables['AWS_REGION']}:000000000000:function:{name}"
            try:
                return instance.invoke(event, arn, min(self._timeout, INTEGRATION_TIMEOUT))
            except TimeoutError:
                if self._timeout >= INTEGRATION_TIMEOUT:
                    raise
                return _failed(f"Task timed out after {self._timeout} seconds")
            finally:
                if instance.wait_until_ready():
                    self._idle.append(instance)
                else:
                    instance.stop()

    def stop(self) -> None:
        for instance in self._all:
            instance.stop()

    def _instance(self) -> Instance:
        """The most recently used idle instance, or a new one."""
        with suppress(IndexError):
            while True:
                if (idle := self._idle.pop()).is_alive():
                    return idle
        new = Instance(self._command, self._folder, self._variables)
        self._all.append(new)
        new.wait_until_ready()  # if it never is, its invocation fails
        return new


def _failed(message: str) -> bytes:
    return json.dumps({"errorMessage": message}).encode()


def _lambda_variables(properties: Json, folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that Lambda sets."""
    from_snapshots = properties.get("SnapStart", {}).get("ApplyOn") == "PublishedVersions"
    return {
        "AWS_DEFAULT_REGION": variables["AWS_REGION"],
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{properties['Runtime']}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(properties["MemorySize"]),
        "AWS_LAMBDA_FUNCTION_NAME": "order-api",
        "AWS_LAMBDA_FUNCTION_VERSION": "1" if from_snapshots else "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start" if from_snapshots else "on-demand",
        "LAMBDA_TASK_ROOT": str(folder),
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "_HANDLER": properties["Handler"],
    }


@contextmanager
def function(package: Path, python: Path, variables: Mapping[str, str]) -> Iterator[tuple[Function, Json]]:
    """The function of a build's package/, with its first instance started, and its template.

    Raises SystemExit when the zip is for another machine or Python, or does not start.
    """
    template: Json = json.loads((package / "sam.json").read_text())
    properties = of_type(template, "AWS::Serverless::Function")
    _check(properties)
    constants = {
        name: value
        for name, value in properties["Environment"]["Variables"].items()
        if isinstance(value, str)  # the others refer to the stack's parameters
    }
    with _unzipped(package / "deployment.zip") as folder:
        deployed = Function(properties, python, folder, {**constants, **variables})
        try:
            deployed.start()
            yield deployed, template
        finally:
            deployed.stop()


def _check(properties: Json) -> None:
    runtime = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if properties["Runtime"] != runtime:
        raise SystemExit(
            f"The zip is for {properties['Runtime']}, this is {runtime}: build it with this Python"
        )
    architecture = LAMBDA_ARCHITECTURES.get(platform.machine(), platform.machine())
    if properties["Architectures"] != [architecture]:
        raise SystemExit(
            f"The zip is for {', '.join(properties['Architectures'])}, this machine is {architecture}: "
            f"make build-aws ARCH={architecture}"
        )


@contextmanager
def _unzipped(archive: Path) -> Iterator[Path]:
    """A folder with the zip's content, read-only for the function, as on Lambda."""
    with tempfile.TemporaryDirectory(prefix="order-api-lambda-") as name:
        folder = Path(name) / "task"
        with ZipFile(archive) as zipped:
            zipped.extractall(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555)
        yield folder


def main(python: Path, built: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit())
    with function(built / "package", python, _variables()) as (deployed, template):
        front.Server(ApiGateway(template, deployed.invoke).exchange, host, port).serve_forever()


def _variables() -> dict[str, str]:
    """This process's variables, without Python's, those for verifying tokens, and CORS_ORIGIN.

    The function does not verify tokens. CORS_ORIGIN is fixed in the build, because API Gateway's own answers
    contain it too.
    """
    if (provider := os.environ.get("AUTH_PROVIDER") or "cognito") != "cognito":
        raise SystemExit(
            f"AUTH_PROVIDER is {provider!r}: API Gateway verifies Cognito's tokens only. Unset it"
        )
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "AUTH_AUDIENCE" or not name.startswith(("AUTH_", "CORS_ORIGIN", "PYTHON"))
    }
    return {"AWS_REGION": accepted_tokens().region, **kept}


def _obey_modes() -> None:
    """Make file modes apply to child processes even as root, as they do to every other user."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


if __name__ == "__main__":
    try:
        _obey_modes()
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    except SettingsError as error:
        raise SystemExit(str(error)) from None
