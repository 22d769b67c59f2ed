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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from chalicelib.settings.table import PASSED_TO_OTHER_HOSTS
from deploy import hosts as builds
from local import hosts
from local.database import Urls
from local.issuer import Issuer, variables
from local.key_server import serving_keys
from tests.support.builds import AwsBuild
from tests.support.issuer import accepted
from tests.support.log_leak_plugin import check_log_text
from tools.client import Answer, Client, Transport, free_port, item, over_http, seed

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
BUILT = tuple(builds.SHIM_FILES)
STARTED = "Stop: Ctrl-C"
OTEL = {name: "http://127.0.0.1:1" for name in PASSED_TO_OTHER_HOSTS if name.endswith("_ENDPOINT")}
PASSED_ON = {
    **OTEL,
    "CORS_ORIGIN": "https://shop.example",
    "DB_ALLOW_UNSAFE_ROLE": "0",
    "DB_POOL_SIZE": "2",
    "DB_PREPARE": "off",
    "DB_SSLMODE": "prefer",
    "DEFAULT_CURRENCY": "JPY",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=a",
    "OTEL_METRICS_EXPORTER": "none",
    "RATE_LIMIT": "5/h",
}
"""Variables that reach every host unchanged."""
REPLACED_OR_DROPPED = {
    "AUTH_PROVIDER": "oidc",
    "AUTH_TENANT_CLAIM": "company",
    "AWS_LAMBDA_FUNCTION_NAME": "order-api-dev",
    "BASE_PATH": "/shop",
    "DB_HOST": "elsewhere",
    "DB_PASSWORD": "s3cret",
}


@dataclass
class Host:
    """A running `python -m local serve <cloud>`."""

    process: "subprocess.Popen[bytes]"
    project: Path
    port: int
    log_file: Path

    def output(self) -> str:
        return self.log_file.read_text()

    @property
    def issuer(self) -> Issuer:
        return Issuer(self.project / ".local")

    def client(self, tenant: str) -> Client:
        return Client(over_http("127.0.0.1", self.port), self.issuer.token(tenant, "alice"))

    def wait_until_started(self) -> None:
        deadline = time.monotonic() + 90
        while STARTED not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def runtime(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child


Serve = Callable[..., Host]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without builds; it shares this project's virtual environments."""
    folder = tmp_path_factory.mktemp("shared") / "project"
    nothing_compiled = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
    for name in ("chalicelib", "deploy", "local", "migrations", "shims", ".chalice"):
        shutil.copytree(PROJECT / name, folder / name, ignore=nothing_compiled)
    for name in ("app.py", "pyproject.toml", "requirements.txt", "schema.sql", "test_order.json"):
        shutil.copy(PROJECT / name, folder)
    venvs = PROJECT / "build/venvs"
    venvs.mkdir(parents=True, exist_ok=True)
    (folder / "build").mkdir()
    (folder / "build/venvs").symlink_to(venvs)
    return folder


@pytest.fixture
def own_project(project: Path, tmp_path: Path) -> Path:
    """A copy for a test that changes or removes a build."""
    return shutil.copytree(project, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="module")
def build_for(project: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Builds for a cloud like `make build-<cloud>`, once; does nothing for `aws`."""

    def build(cloud: str) -> None:
        folder = project / hosts.FOLDERS[cloud]
        if folder.exists():
            return
        if cloud == "lambda":
            aws: AwsBuild = request.getfixturevalue("aws_build")
            folder.symlink_to(aws.folder)
        else:
            builds.build(cloud, folder)

    return build


@contextmanager
def serving(project: Path, url: str, logs: Path) -> Iterator[Serve]:
    """Starts hosts in their own process groups, as a terminal does; kills the whole groups afterwards."""
    started: list[Host] = []

    def start(cloud: str, port: int | None = None, project: Path = project, **variables: str) -> Host:
        port = port or free_port()
        log_file = logs / f"said-{len(started)}"
        defaults = {
            "DATABASE_URL": url,
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


@pytest.fixture
def serve(project: Path, database: Urls, tmp_path: Path) -> Iterator[Serve]:
    with serving(project, database.app, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\n")
    return path


@pytest.fixture(scope="module", params=hosts.RUNTIMES)
def host(
    request: pytest.FixtureRequest,
    project: Path,
    database: Urls,
    build_for: Callable[[str], None],
    authority: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Host]:
    """Each cloud's host, with variables of the developer's shell. The last of its tests stops it."""
    build_for(request.param)
    with serving(project, database.app, tmp_path_factory.mktemp("logs")) as start:
        host = start(request.param, **PASSED_ON, **REPLACED_OR_DROPPED, DB_SSLROOTCERT=str(authority))
        host.wait_until_started()
        yield host


def failure_output(host: Host) -> str:
    """The output of a host that exits by itself with status 1."""
    assert host.process.wait(60) == 1, host.output()
    return host.output()


def stop_by_ctrl_c(host: Host) -> None:
    os.killpg(host.process.pid, signal.SIGINT)


def assert_stopped(host: Host, processes: list[psutil.Process]) -> None:
    host.process.wait(30)
    assert not psutil.wait_procs(processes, timeout=5)[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", host.port)).close()
    assert host.output().endswith("\nStopped. The orders are kept.\n")


def test_host_serves_orders(host: Host, tenant: str) -> None:
    alice = host.client(tenant)

    placed = alice.place()

    order = placed.json["order"]
    assert (placed.status, order["tenant_id"]) == (201, tenant)
    assert alice.get(f"/orders/{order['order_id']}").json == {"order": order}
    assert host.client("globex").get(f"/orders/{order['order_id']}").status == 404


def test_hosts_share_the_stored_orders(host: Host, in_process: Transport, tenant: str) -> None:
    with serving_keys(host.issuer.jwks()) as jwks_url, accepted(variables(jwks_url)):
        placed = Client(in_process, host.issuer.token(tenant, "alice")).place(key="moving")

    replayed = host.client(tenant).place(key="moving")

    assert replayed.headers["idempotent-replayed"] == "true"
    assert replayed.json == placed.json


def test_aws_lambda_function_name_does_not_disable_verification(host: Host, tenant: str) -> None:
    unsigned = ".".join(
        urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"none"}', b'{"sub":"mallory","custom:tenant_id":"acme","token_use":"id"}', b"")
    )

    forged: Answer = Client(over_http("127.0.0.1", host.port), unsigned).get("/orders")
    valid = host.client(tenant).place()

    assert (forged.status, valid.status) == (401, 201)


def test_host_receives_the_settings_of_a_deployed_function(host: Host, tenant: str) -> None:
    order = seed(total_amount=5, items=[item(unit_price=5)])
    del order["currency"]

    placed = host.client(tenant).place(order)

    assert placed.status == 201
    assert placed.headers["ratelimit-policy"] == '"tenant";q=5;w=3600'
    assert placed.json["order"]["currency"] == "JPY"


def test_host_receives_all_variables_except_locally_set_ones(host: Host) -> None:
    received = host.runtime().environ()

    assert {name: received.get(name) for name in PASSED_ON} == PASSED_ON
    assert (received["AUTH_PROVIDER"], received["AUTH_TENANT_CLAIM"]) == ("cognito", "")
    assert received["BASE_PATH"] == ""
    assert not {"AWS_LAMBDA_FUNCTION_NAME", "DB_HOST", "DB_PASSWORD"} & received.keys()


def test_db_sslrootcert_is_passed_only_without_a_build(
    host: Host, authority: Path, request: pytest.FixtureRequest
) -> None:
    passed = str(authority) if request.node.callspec.params["host"] == "aws" else None

    assert host.runtime().environ().get("DB_SSLROOTCERT") == passed


def test_ctrl_c_stops_a_host_with_its_processes(host: Host) -> None:
    processes = host.processes()

    stop_by_ctrl_c(host)

    assert_stopped(host, processes)


def test_sigterm_stops_a_host_with_its_processes(serve: Serve, build_for: Callable[[str], None]) -> None:
    build_for("oci")
    host = serve("oci")
    host.wait_until_started()
    processes = host.processes()

    host.process.terminate()

    assert_stopped(host, processes)


@pytest.mark.parametrize("cloud", ["gcp", "lambda", "oci"])
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

    assert_stopped(host, processes)
    assert STARTED not in host.output()


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


def test_port_in_use_is_reported_with_a_hint(serve: Serve, build_for: Callable[[str], None]) -> None:
    build_for("oci")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        output = failure_output(serve("oci", port=port))

    assert output == (
        f"Cannot listen on 127.0.0.1:{port}: Address already in use. Try: make local-oci PORT=8001\n"
    )


@pytest.mark.parametrize(("cloud", "target"), [("gcp", "gcp"), ("lambda", "aws")])
def test_missing_build_folder_is_reported(serve: Serve, own_project: Path, cloud: str, target: str) -> None:
    shutil.rmtree(own_project / "build")

    output = failure_output(serve(cloud, project=own_project))

    assert output == f"{own_project / 'build' / target} is not there: run make build-{target} first\n"


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_host_that_fails_to_start_explains_why(
    serve: Serve, build_for: Callable[[str], None], request: pytest.FixtureRequest, cloud: str
) -> None:
    build_for(cloud)
    project: Path = request.getfixturevalue("own_project")
    built = project / "build" / cloud
    shutil.rmtree(built / "__pycache__")
    (built / "app.py").write_text('raise RuntimeError("broken on purpose")\n')

    output = failure_output(serve(cloud, project=project))

    assert "RuntimeError: broken on purpose" in output
    assert output.endswith("The host did not start: see its output above\n")


@pytest.mark.parametrize("cloud", ["gcp", "oci"])
def test_a_host_that_dies_later_ends_the_command(
    serve: Serve, build_for: Callable[[str], None], cloud: str
) -> None:
    build_for(cloud)
    host = serve(cloud)
    host.wait_until_started()

    host.runtime().kill()

    assert failure_output(host).endswith("The host has ended: see its output above\n")


def test_malformed_database_url_stops_the_host(serve: Serve, build_for: Callable[[str], None]) -> None:
    build_for("oci")

    output = failure_output(serve("oci", DATABASE_URL="mysql://a:s3cret@h/x"))

    assert output.startswith("DATABASE_URL is not a connection URL: ")
    assert "s3cret" not in output


def test_malformed_setting_is_reported_before_a_host_serves(
    serve: Serve, build_for: Callable[[str], None]
) -> None:
    build_for("gcp")

    assert failure_output(serve("gcp", RATE_LIMIT="fast")).startswith(
        "RATE_LIMIT is 'fast': use requests per second"
    )
    assert failure_output(serve("gcp", CORS_ORIGIN="shop")).startswith(
        "CORS_ORIGIN is 'shop': use * or one origin"
    )
