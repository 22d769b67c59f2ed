"""`make local-<cloud>`: serves a build with that cloud's runtime until it gets a signal."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from chalicelib.settings.table import PASSED_TO_OTHER_HOSTS
from deploy import hosts as builds
from local import hosts
from local.database import Urls
from local.issuer import Issuer
from tests.support.builds import AwsBuild
from tests.support.log_leak_plugin import check_log_text
from tools.client import SEED_BYTES, Answer, Client, free_port, item, over_http, seed

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
BUILT = tuple(builds.SHIM_FILES)
STARTED = "Stop: Ctrl-C"


@dataclass
class Host:
    """A running `python -m local serve <cloud>`."""

    process: "subprocess.Popen[bytes]"
    project: Path
    port: int
    log_file: Path

    def output(self) -> str:
        return self.log_file.read_text()

    def client(self, tenant: str = "acme") -> Client:
        token = Issuer(self.project / ".local").token(tenant, "alice")
        return Client(over_http("127.0.0.1", self.port), token)

    def wait_until_started(self) -> None:
        deadline = time.monotonic() + 90
        while STARTED not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]


Serve = Callable[..., Host]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project without builds; it shares this project's virtual environments."""
    folder = tmp_path / "project"
    nothing_compiled = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
    for name in ("chalicelib", "deploy", "local", "shims", ".chalice"):
        shutil.copytree(PROJECT / name, folder / name, ignore=nothing_compiled)
    for name in ("app.py", "pyproject.toml", "requirements.txt", "schema.sql", "test_order.json"):
        shutil.copy(PROJECT / name, folder)
    venvs = PROJECT / "build/venvs"
    venvs.mkdir(parents=True, exist_ok=True)
    (folder / "build").mkdir()
    (folder / "build/venvs").symlink_to(venvs)
    return folder


@pytest.fixture
def build_for(project: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Builds for a cloud like `make build-<cloud>`; does nothing for `aws`."""

    def build(cloud: str) -> None:
        if cloud == "lambda":
            aws: AwsBuild = request.getfixturevalue("aws_build")
            (project / "build/aws").symlink_to(aws.folder)
        elif cloud != "aws":
            builds.build(cloud, project / "build" / cloud)

    return build


@pytest.fixture
def serve(project: Path, database: Urls, tmp_path: Path) -> Iterator[Serve]:
    """Starts a host in its own process group, as a terminal does; kills the whole group afterwards."""
    started: list[Host] = []

    def start(cloud: str, port: int | None = None, **variables: str) -> Host:
        port = port or free_port()
        log_file = tmp_path / f"said-{len(started)}"
        defaults = {
            "DATABASE_URL": database.app,
            "OWNER_DATABASE_URL": "",
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }
        with log_file.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "local", "serve", cloud],
                cwd=project,
                env={**os.environ, **defaults, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(Host(process, project, port, log_file))
        return started[-1]

    yield start
    for host in started:
        with suppress(psutil.NoSuchProcess):
            for child in host.processes():  # hosts start sessions of their own
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        host.process.wait(10)
        # The output before this line has tokens for the user.
        check_log_text("the output while serving", host.output().rpartition(STARTED)[2])


def failure_output(host: Host) -> str:
    """The output of a host that exits by itself with status 1."""
    assert host.process.wait(60) == 1, host.output()
    return host.output()


def stop_by_ctrl_c(host: Host) -> None:
    os.killpg(host.process.pid, signal.SIGINT)


def stop_by_sigterm(host: Host) -> None:
    host.process.terminate()


@pytest.mark.parametrize("stop", [stop_by_ctrl_c, stop_by_sigterm])
@pytest.mark.parametrize("cloud", hosts.RUNTIMES)
def test_host_serves_orders_and_stops_with_its_processes(
    serve: Serve, build_for: Callable[[str], None], cloud: str, stop: Callable[[Host], None]
) -> None:
    build_for(cloud)
    host = serve(cloud)
    host.wait_until_started()
    alice = host.client()

    placed = alice.place()

    order = placed.json["order"]
    assert (placed.status, order["tenant_id"]) == (201, "acme")
    assert alice.get(f"/orders/{order['order_id']}").json == {"order": order}
    assert host.client("globex").get(f"/orders/{order['order_id']}").status == 404
    processes = host.processes()

    stop(host)

    host.process.wait(30)
    assert not psutil.wait_procs(processes, timeout=5)[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", host.port)).close()
    assert host.output().endswith("\nStopped. The orders are kept.\n")


@pytest.mark.parametrize("cloud", hosts.RUNTIMES)
def test_ctrl_c_before_a_host_listens_stops_it(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    host = serve(cloud)
    deadline = time.monotonic() + 60
    while len(processes := host.processes()) == 1:
        assert host.process.poll() is None, host.output()
        assert time.monotonic() < deadline, host.output()
        time.sleep(0.01)

    stop_by_ctrl_c(host)

    host.process.wait(30)
    assert not psutil.wait_procs(processes, timeout=5)[1]
    assert STARTED not in host.output()
    assert host.output().endswith("\nStopped. The orders are kept.\n")


@pytest.mark.parametrize("number", hosts.ENDING)
def test_signal_during_fork_leaves_no_child(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race that the test above rarely hits: a signal after the fork and before Popen returns."""
    pids: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pids.append(self.pid)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), hosts.serving("aws", tmp_path, {}, "127.0.0.1", free_port()):
            pytest.fail("the signal was ignored")
        assert signal.getsignal(number) is signal.default_int_handler
        alive = [pid for pid in pids if psutil.pid_exists(pid)]
    finally:
        signal.signal(number, before)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    assert alive == []
    assert len(pids) == 1


@pytest.mark.parametrize("cloud", BUILT)
def test_port_in_use_is_reported_with_a_hint(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        output = failure_output(serve(cloud, port=port))

    hint = f"Try: make local-{cloud} PORT=8001"
    assert output.startswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use")
    assert output.endswith(f" {hint}\n")
    assert output.count("\n") == 1


@pytest.mark.parametrize(("cloud", "target"), [*((cloud, cloud) for cloud in BUILT), ("lambda", "aws")])
def test_missing_build_folder_is_reported(serve: Serve, project: Path, cloud: str, target: str) -> None:
    output = failure_output(serve(cloud))

    assert output == f"{project / 'build' / target} is not there: run make build-{target} first\n"


@pytest.mark.parametrize("cloud", [*BUILT, "aws"])
def test_aws_lambda_function_name_does_not_disable_verification(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    host = serve(cloud, AWS_LAMBDA_FUNCTION_NAME="order-api-dev")
    host.wait_until_started()
    unsigned = ".".join(
        urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"none"}', b'{"sub":"mallory","custom:tenant_id":"acme","token_use":"id"}', b"")
    )

    forged: Answer = Client(over_http("127.0.0.1", host.port), unsigned).get("/orders")
    valid = host.client().place()

    assert (forged.status, valid.status) == (401, 201)


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_host_that_fails_to_start_explains_why(
    serve: Serve, project: Path, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    built = project / "build" / cloud
    shutil.rmtree(built / "__pycache__")
    (built / "app.py").write_text('raise RuntimeError("broken on purpose")\n')

    output = failure_output(serve(cloud))

    assert "RuntimeError: broken on purpose" in output
    assert output.endswith("The host did not start: see its output above\n")


@pytest.mark.parametrize("cloud", BUILT)
def test_a_host_that_dies_later_ends_the_command(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    host = serve(cloud)
    host.wait_until_started()
    runtime = next(
        child
        for child in psutil.Process(host.process.pid).children()
        if {"functions-framework", "fdk", "local.azure_host"} & {Path(part).name for part in child.cmdline()}
    )

    runtime.kill()

    assert failure_output(host).endswith("The host has ended: see its output above\n")


@pytest.mark.parametrize("cloud", BUILT)
def test_malformed_database_url_stops_the_host(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)

    host = serve(cloud, DATABASE_URL="mysql://a:s3cret@h/x")

    output = failure_output(host)
    assert output.startswith("DATABASE_URL is not a connection URL: ")
    assert "s3cret" not in output


@pytest.mark.parametrize("cloud", hosts.RUNTIMES)
def test_host_receives_the_settings_of_a_deployed_function(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    host = serve(cloud, RATE_LIMIT="5/h", DEFAULT_CURRENCY="JPY", AUTH_PROVIDER="oidc", BASE_PATH="/shop")
    host.wait_until_started()

    order = seed(total_amount=5, items=[item(unit_price=5)])
    del order["currency"]
    placed = host.client(f"told-{cloud}").place(order)

    assert placed.status == 201
    assert placed.headers["ratelimit-policy"] == '"tenant";q=5;w=3600'
    assert placed.json["order"]["currency"] == "JPY"


def test_host_receives_all_variables_except_locally_set_ones(
    serve: Serve, build_for: Callable[[str], None]
) -> None:
    own = {"DB_ALLOW_UNSAFE_ROLE": "0", "DB_PREPARE": "off", "DB_SSLMODE": "prefer", "RATE_LIMIT": "5/s"}
    otel = {name: "http://127.0.0.1:1" for name in PASSED_TO_OTHER_HOSTS if name.endswith("_ENDPOINT")}
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=a", "OTEL_METRICS_EXPORTER": "none"}
    variables = {**own, **otel, **headers, "DB_POOL_SIZE": "2", "CORS_ORIGIN": "https://shop.example"}
    build_for("oci")
    host = serve("oci", **variables, DB_HOST="elsewhere", DB_PASSWORD="s3cret", AUTH_TENANT_CLAIM="company")
    host.wait_until_started()

    (runtime,) = [process for process in host.processes() if "fdk" in " ".join(process.cmdline())]

    received = runtime.environ()
    assert {name: received.get(name) for name in variables} == variables
    assert received["AUTH_TENANT_CLAIM"] == ""
    assert not {"DB_HOST", "DB_PASSWORD"} & received.keys()


@pytest.mark.parametrize(("cloud", "passed"), [("aws", True), ("gcp", False)])
def test_db_sslrootcert_is_passed_only_without_a_build(
    serve: Serve, build_for: Callable[[str], None], tmp_path: Path, cloud: str, passed: bool
) -> None:
    build_for(cloud)
    authority = tmp_path / "authority.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n")
    host = serve(cloud, DB_SSLROOTCERT=str(authority))
    host.wait_until_started()

    runtime = psutil.Process(host.process.pid).children()[0]

    assert runtime.environ().get("DB_SSLROOTCERT") == (str(authority) if passed else None)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_malformed_setting_is_reported_before_a_host_serves(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)

    assert failure_output(serve(cloud, RATE_LIMIT="fast")).startswith(
        "RATE_LIMIT is 'fast': use requests per second"
    )
    assert failure_output(serve(cloud, CORS_ORIGIN="shop")).startswith(
        "CORS_ORIGIN is 'shop': use * or one origin"
    )


def test_hosts_share_the_stored_orders(serve: Serve, build_for: Callable[[str], None]) -> None:
    placed: list[str] = []
    for cloud in BUILT:
        build_for(cloud)
        host = serve(cloud)
        host.wait_until_started()
        answer = host.client("moving").send(
            "POST", "/orders", SEED_BYTES, {"Content-Type": "application/json", "Idempotency-Key": "moving"}
        )
        placed.append(answer.json["order"]["order_id"])
        stop_by_ctrl_c(host)
        host.process.wait(30)

    assert len(placed) == len(BUILT)
    assert len(set(placed)) == 1
