"""`make conform`: the differences it finds on a deployed stage, and its error messages."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy import hosts as builds
from local import hosts
from local.database import Urls
from tests.support.cognito import UserPool
from tests.support.servers import limited
from tools.client import Answer, Transport, free_port
from tools.conform.__main__ import Stage, Unusable
from tools.conform.cases import CASES, MIB

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "tools.conform"]
INHERITED = {"PATH": os.environ["PATH"], "COLUMNS": "400"}

Change = Callable[[Answer], Answer]


def conform(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND,
        cwd=PROJECT,
        env={**INHERITED, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Handler(BaseHTTPRequestHandler):
    """Passes each request to the server's transport."""

    protocol_version = "HTTP/1.1"
    server: "StageServer"

    def handle_any(self) -> None:
        answer = self.server.send(self.command, self.path, dict(self.headers), self.body())
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = handle_any

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def parse_request(self) -> bool:
        """Like http.server, but `//orders` keeps both slashes."""
        is_good = super().parse_request()
        if is_good:
            self.path = self.requestline.split()[1]
        return is_good

    def log_message(self, format: str, *args: object) -> None:
        """No log: a test sends hundreds of requests."""


class EarlyHandler(Handler):
    """Answers a request with a large body before reading it, and closes the connection."""

    def body(self) -> bytes:
        if int(self.headers.get("Content-Length") or 0) <= MIB:
            return super().body()
        self.close_connection = True
        return b" " * (MIB + 1)


class StageServer(ThreadingHTTPServer):
    daemon_threads = True
    send: Transport


@contextmanager
def serve_stage(
    send: Transport,
    base: str = "",
    tls: ssl.SSLContext | None = None,
    handler: type[Handler] = Handler,
) -> Iterator[str]:
    """Serves `send` on a real socket like a deployed stage; yields its URL."""

    def without_base(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return send(method, target.removeprefix(base), headers, body)

    server = StageServer(("127.0.0.1", 0), handler)
    server.send = without_base
    # Small, so that the client is still sending a large body when an early answer comes.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}{base}"
    finally:
        server.shutdown()
        server.server_close()


def with_changed_answers(send: Transport, change: Change, only: str = "") -> Transport:
    """The API with changed answers, to all requests or only to one."""

    def changed(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = send(method, target, headers, body)
        return change(answer) if only in ("", f"{method} {target}") else answer

    return changed


@pytest.fixture
def tokens(user_pool: UserPool, tenant: str) -> dict[str, str]:
    return {
        "TOKEN": user_pool.token(tenant),
        "OTHER_TOKEN": user_pool.token(f"{tenant}-other"),
        "TENANTLESS_TOKEN": user_pool.token(None),
    }


# Conforming stages


def test_conforming_stage_passes_repeatedly(
    in_process: Transport, tokens: dict[str, str], tmp_path: Path
) -> None:
    """The second run is by `make`, which passes its variables on."""
    installed = tmp_path / "installed"
    installed.touch()
    make = ["make", "--silent", "conform", f"READY={installed}", f"BIN={Path(sys.executable).parent}"]
    with serve_stage(in_process) as url:
        first = conform(URL=url, **tokens)
        second = subprocess.run(
            [*make, f"URL={url}", *(f"{name}={token}" for name, token in tokens.items())],
            cwd=PROJECT,
            env=INHERITED,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    for result in (first, second):
        assert result.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n", result
        assert "places up to 16 orders in the tenant of TOKEN" in result.stderr
        assert result.returncode == 0


def test_rate_limited_requests_are_retried(
    in_process: Transport, tokens: dict[str, str], database: Urls
) -> None:
    with limited(database.app, "10/s"), serve_stage(in_process) as url:
        result = conform(URL=url, **tokens)

    assert result.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"


def test_too_low_rate_limit_is_reported(
    in_process: Transport, tokens: dict[str, str], database: Urls
) -> None:
    with limited(database.app, "5/h"), serve_stage(in_process) as url:
        result = conform(URL=url, **tokens)

    assert (result.stdout, result.returncode) == ("", 2)
    assert "The stage's RATE_LIMIT is too low for this list: raise it or unset it" in result.stderr


def test_base_path_prefixes_targets_without_normalizing_them(
    in_process: Transport, tokens: dict[str, str]
) -> None:
    targets = []

    def recording(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        targets.append(target)
        return in_process(method, target, headers, body)

    with serve_stage(recording, base="/shops/dev") as url:
        result = conform(URL=f"{url}/", **tokens)

    assert result.stdout.startswith(f"{len(CASES)} alike, 0 differ"), result.stdout
    assert {"//orders", "/health//ready", "/health/../orders", "/orders/a%2Fb", "/orders/%zz"} <= {*targets}


def test_other_settings_conform_when_given_as_variables(
    environment: dict[str, str], tmp_path: Path, tokens: dict[str, str]
) -> None:
    builds.build("gcp", tmp_path / "gcp")
    origin, port = "https://shop.example", free_port()
    other = {"CORS_ORIGIN": origin, "DEFAULT_CURRENCY": "JPY", "BASE_PATH": "/shop"}
    with hosts.serving("gcp", tmp_path / "gcp", {**environment, **other}, "127.0.0.1", port):
        url = f"http://127.0.0.1:{port}/shop"

        with_settings = conform(URL=url, **tokens, ORIGIN=origin, CURRENCY="JPY")
        without_settings = conform(URL=url, **tokens)

    assert with_settings.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"
    assert without_settings.returncode == 1
    assert '"default": "JPY"' in without_settings.stdout


def test_docs_case_is_skipped_when_docs_are_off(
    in_process: Transport, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCS", "off")
    with serve_stage(in_process) as url:
        result = conform(URL=url, **tokens)

    assert result.stdout == f"{len(CASES) - 1} alike, 0 differ, 1 left out (1 since DOCS is off)\n"
    assert result.returncode == 0


def test_cases_without_their_token_are_skipped_and_counted(
    in_process: Transport, tokens: dict[str, str]
) -> None:
    counts = [sum(case.caller == caller for case in CASES) for caller in ("stranger", "tenantless")]
    with serve_stage(in_process) as url:
        result = conform(URL=url, TOKEN=f" Bearer {tokens['TOKEN']}\n")

    assert result.stdout == (
        f"{len(CASES) - sum(counts)} alike, 0 differ, {sum(counts)} left out "
        f"({counts[0]} for want of OTHER_TOKEN, {counts[1]} for want of TENANTLESS_TOKEN)\n"
    )
    assert result.returncode == 0


# Differences


CHANGES: dict[str, tuple[Change, list[str]]] = {
    "GET /nowhere": (
        lambda answer: replace(answer, status=403),
        ["an unknown path", "status", "404", "403"],
    ),
    "GET /Orders": (
        lambda answer: replace(answer, headers={**answer.headers, "cache-control": "public"}),
        ["a path in capitals", "cache-control", "no-store", "public"],
    ),
    "GET /%6Frders": (
        lambda answer: replace(answer, headers={"content-type": answer.headers["content-type"]}),
        ["a percent-encoded path", "access-control-allow-origin", "*", "absent"],
    ),
    "GET //orders": (
        lambda answer: replace(answer, body=answer.body.replace(b"nothing", b"\x1b[31mnothing")),
        ["a doubled slash", "body", "There is nothing here", r"There is \x1b[31mnothing here"],
    ),
    "GET /health/../orders": (
        lambda answer: replace(answer, headers={**answer.headers, "x-request-id": "client-made-1"}),
        ["a dot segment", "x-request-id", "the host's own", "client-made-1"],
    ),
    "GET /health//ready": (
        lambda answer: replace(answer, body=b"<html>nginx</html>"),
        ["a doubled slash inside", "body", '{"type":', "<html>nginx</html>"],
    ),
}
"""Requests whose answers are changed, and the row of the table that shows each change."""


def test_differing_response_is_a_row(in_process: Transport, tokens: dict[str, str]) -> None:
    send = in_process
    for request, (change, _) in CHANGES.items():
        send = with_changed_answers(send, change, request)
    with serve_stage(send) as url:
        result = conform(URL=url, **tokens)

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    rows = [cells for cells in rows if len(cells) == 4]
    for above, cells in pairwise(rows):
        cells[0] = cells[0] or above[0]  # only the first row of a case has its name
    for _, row in CHANGES.values():
        assert any(
            cells[:2] == row[:2] and all(part in cell for part, cell in zip(row[2:], cells[2:], strict=True))
            for cells in rows
        ), (row, result.stdout)
    assert result.stdout.endswith(f"{len(CASES) - 6} alike, 6 differ, 0 left out\n")
    assert result.returncode == 1


def test_cases_depending_on_a_failed_one_are_skipped(in_process: Transport, tokens: dict[str, str]) -> None:
    def fail(answer: Answer) -> Answer:
        return replace(answer, status=503, body=b"<html>") if answer.status == 201 else answer

    with serve_stage(with_changed_answers(in_process, fail, "POST /orders")) as url:
        result = conform(URL=url, **tokens)

    assert " not reached)" in result.stdout
    assert "{first.order_id}" not in result.stdout
    assert result.returncode == 1


def test_cross_tenant_list_leak_is_detected(in_process: Transport, tokens: dict[str, str]) -> None:
    def leak(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        own_token = {**headers, "Authorization": f"Bearer {tokens['TOKEN']}"}
        stranger = headers.get("Authorization", "").endswith(tokens["OTHER_TOKEN"])
        return in_process(method, target, own_token if stranger and target == "/orders" else headers, body)

    with serve_stage(in_process) as url:
        assert conform(URL=url, TOKEN=tokens["OTHER_TOKEN"]).returncode == 0
    with serve_stage(leak) as url:
        result = conform(URL=url, **tokens)

    assert "a stranger's list" in result.stdout
    assert result.returncode == 1


def test_tokens_of_the_same_tenant_are_reported(
    in_process: Transport, user_pool: UserPool, tenant: str
) -> None:
    with serve_stage(in_process) as url:
        result = conform(URL=url, TOKEN=user_pool.token(tenant), OTHER_TOKEN=user_pool.token(tenant, "bob"))

    assert "Is OTHER_TOKEN of another tenant than TOKEN?" in result.stdout
    assert result.returncode == 1


# Interrupted runs


def test_ctrl_c_prints_the_results_so_far(in_process: Transport, tokens: dict[str, str]) -> None:
    reached, proceed = threading.Event(), threading.Event()

    def hang(answer: Answer) -> Answer:
        reached.set()
        proceed.wait(30)
        return answer

    with serve_stage(with_changed_answers(in_process, hang, "GET /orders?limit=0")) as url:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *COMMAND],  # a background job of a shell ignores it
            cwd=PROJECT,
            env={**INHERITED, "URL": url, **tokens},
            stdout=-1,
            stderr=-1,
            text=True,
        )
        assert reached.wait(30)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        proceed.set()

    before = [case.name for case in CASES].index("limit 0")
    assert (
        output
        == f"{before} alike, 0 differ, {len(CASES) - before} left out ({len(CASES) - before} not reached)\n"
    )
    assert "Traceback" not in errors
    assert process.returncode == 130


def test_unreachable_stage_ends_the_run(in_process: Transport, tokens: dict[str, str]) -> None:
    remaining = iter(range(20))

    def die(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        next(remaining)  # StopIteration then ends the handler's thread and its connection
        return in_process(method, target, headers, body)

    with serve_stage(die) as url:
        result = conform(URL=url, **tokens)

    assert "The API has stopped answering." in result.stderr
    assert "3 differ" in result.stdout
    assert "no answer: RemoteDisconnected" in result.stdout
    assert result.returncode == 1


def test_early_response_before_the_whole_body_is_used(in_process: Transport, tokens: dict[str, str]) -> None:
    with serve_stage(in_process, handler=EarlyHandler) as url:
        result = conform(URL=url, **tokens)

    assert result.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"


# Usage errors and unusable stages


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"URL": "http://127.0.0.1:8000"}, "TOKEN must be set."),
        ({"URL": " ", "TOKEN": "t"}, "URL must be set."),
        ({"URL": "api.example.com", "TOKEN": "t"}, "URL is 'api.example.com': use the API's address"),
        ({"URL": "ftp://api.example.com", "TOKEN": "t"}, "URL is 'ftp://"),
        ({"URL": "https://", "TOKEN": "t"}, "URL is 'https://"),
        ({"URL": "https://a:b@api.example.com", "TOKEN": "t"}, "URL holds a user name"),
        ({"URL": "https://api.example.com:x", "TOKEN": "t"}, "URL is 'https://api.example.com:x'"),
        ({"URL": "https://api.example.com/a b", "TOKEN": "t"}, "URL is 'https://api.example.com/a b'"),
        ({"URL": "https://api.example.com/?a=b", "TOKEN": "t"}, "URL is 'https://api.example.com/?a=b'"),
        ({"URL": "https://[::1", "TOKEN": "t"}, "URL is 'https://[::1'"),
        ({"URL": "https://api.example.com", "TOKEN": "a b"}, "TOKEN is not a token"),
        ({"URL": "https://api.example.com", "TOKEN": "ü"}, "TOKEN is not a token"),
        ({"URL": "https://api.example.com", "TOKEN": "t", "OTHER_TOKEN": "t"}, "must be of three different"),
    ],
)
def test_wrong_usage_is_explained(variables: dict[str, str], message: str) -> None:
    with pytest.raises(Unusable, match=re.escape(message)):
        Stage.from_variables(variables)


def test_missing_variables_are_reported_with_instructions() -> None:
    result = conform()

    assert result.stderr.startswith("URL and TOKEN must be set.")
    assert "TOKEN=$(make -s token)" in result.stderr
    assert "OrderApiUrl" in result.stderr
    assert "Traceback" not in result.stderr
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, {}, b"<html>Welcome</html>"), "This is not the order API: {url}/health answers 200 "),
        (Answer(404, {}, b'{"message":"Not Found"}'), "This is not the order API: {url}/health answers 404 "),
        (
            Answer(301, {"location": "https://api.example.com/health"}, b""),
            "{url}/health redirects to https://api.example.com/health: set URL to that",
        ),
    ],
    ids=["HTML", "404", "redirect"],
)
def test_non_order_api_is_reported_in_one_sentence(
    in_process: Transport, answer: Answer, message: str
) -> None:
    with serve_stage(with_changed_answers(in_process, lambda _: answer)) as url:
        result = conform(URL=url, TOKEN="t")

    assert result.stderr.startswith(message.format(url=url))
    assert len(result.stderr.splitlines()) == 1
    assert (result.returncode, result.stdout) == (2, "")


def test_rejected_token_is_reported_in_one_sentence(in_process: Transport, tokens: dict[str, str]) -> None:
    with serve_stage(in_process) as url:
        results = [
            conform(URL=url, TOKEN="a.b.c"),
            conform(URL=url, TOKEN=tokens["TOKEN"], OTHER_TOKEN="a.b.c"),
            conform(URL=url, TOKEN=tokens["TENANTLESS_TOKEN"]),
        ]

    assert [result.stderr.partition(":")[0] for result in results] == [
        "TOKEN is refused",
        "OTHER_TOKEN is refused",
        "TOKEN names no tenant",
    ]
    assert {(result.returncode, result.stdout) for result in results} == {(2, "")}


def test_unavailable_database_is_reported_in_one_sentence(in_process: Transport) -> None:
    problem = Answer(503, {"x-request-id": "8f2c"}, b'{"title":"Unavailable"}')
    with serve_stage(with_changed_answers(in_process, lambda _: problem, "GET /orders?limit=1")) as url:
        result = conform(URL=url, TOKEN="a.b.c")

    assert result.stderr.startswith(f"{url}/orders with TOKEN answers 503 ")
    assert "8f2c" in result.stderr
    assert result.returncode == 2


def test_refused_connection_is_reported_in_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    result = conform(URL=url, TOKEN="t")

    assert result.stderr == f"{url}/health cannot be reached: Connection refused\n"
    assert result.returncode == 2


def test_unknown_host_is_reported_in_one_sentence() -> None:
    result = conform(URL="https://api.invalid/dev", TOKEN="t")

    assert result.stderr.startswith("https://api.invalid/dev/health cannot be reached: ")
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    self_signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, plain, serialization.NoEncryption())
    path.write_bytes(private + self_signed.public_bytes(pem))
    return path


def test_https_accepts_only_a_trusted_certificate(
    in_process: Transport, tokens: dict[str, str], certificate: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serve_stage(in_process, base="/dev", tls=tls) as url:
        untrusted = conform(URL=url, **tokens)
        trusted = conform(URL=url, **tokens, SSL_CERT_FILE=str(certificate))

    assert untrusted.stderr.startswith("The certificate of 127.0.0.1:")
    assert "SSL_CERT_FILE" in untrusted.stderr
    assert untrusted.returncode == 2
    assert trusted.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n", trusted


def test_https_to_an_http_port_is_explained(in_process: Transport) -> None:
    with serve_stage(in_process) as url:
        result = conform(URL=url.replace("http:", "https:"), TOKEN="t")

    assert "does not speak TLS" in result.stderr
    assert result.returncode == 2
