"""`make conform`: what it finds on a deployed stage, and what it says when there is nothing to compare."""

import os
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
    """Hands each request to the server's transport."""

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
        """As http.server does it, but `//orders` keeps both slashes."""
        is_good = super().parse_request()
        if is_good:
            self.path = self.requestline.split()[1]
        return is_good

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: hundreds of requests a test."""


class HastyHandler(Handler):
    """Answers a large body before it has read it, and closes."""

    def body(self) -> bytes:
        if int(self.headers.get("Content-Length") or 0) <= MIB:
            return super().body()
        self.close_connection = True
        return b" " * (MIB + 1)


class StageServer(ThreadingHTTPServer):
    daemon_threads = True
    send: Transport


@contextmanager
def stage(
    send: Transport,
    base: str = "",
    tls: ssl.SSLContext | None = None,
    handler: type[Handler] = Handler,
) -> Iterator[str]:
    """A deployed stage: `send` behind a real socket. Its URL."""

    def without_base(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return send(method, target.removeprefix(base), headers, body)

    server = StageServer(("127.0.0.1", 0), handler)
    server.send = without_base
    # Small, so that a large body is still being sent when a hasty answer comes.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}{base}"
    finally:
        server.shutdown()
        server.server_close()


def changing(send: Transport, change: Change, only: str = "") -> Transport:
    """The same API, but for its answers, or those to one request."""

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


# A stage that keeps the contract


def test_conforming_stage_passes_repeatedly(in_process: Transport, tokens: dict[str, str]) -> None:
    with stage(in_process) as url:
        for asked in range(2):
            done = conform(URL=url, **tokens)

            assert done.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n", (asked, done)
            assert "places up to 16 orders in the tenant of TOKEN" in done.stderr
            assert done.returncode == 0


def test_rate_limited_requests_are_retried(
    in_process: Transport, tokens: dict[str, str], database: Urls
) -> None:
    with limited(database.app, "10/s"), stage(in_process) as url:
        done = conform(URL=url, **tokens)

    assert done.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"


def test_too_low_rate_limit_is_reported(
    in_process: Transport, tokens: dict[str, str], database: Urls
) -> None:
    with limited(database.app, "5/h"), stage(in_process) as url:
        done = conform(URL=url, **tokens)

    assert (done.stdout, done.returncode) == ("", 2)
    assert "The stage's RATE_LIMIT is too low for this list: raise it or unset it" in done.stderr


def test_make_conform_passes_its_variables_on(
    in_process: Transport, tokens: dict[str, str], tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    installed.touch()
    make = ["make", "--silent", "conform", f"READY={installed}", f"BIN={Path(sys.executable).parent}"]
    with stage(in_process) as url:
        done = subprocess.run(
            [*make, f"URL={url}", *(f"{name}={token}" for name, token in tokens.items())],
            cwd=PROJECT,
            env=INHERITED,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert done.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n", done
    assert done.returncode == 0


def test_base_path_prefixes_targets_without_normalizing_them(
    in_process: Transport, tokens: dict[str, str]
) -> None:
    targets = []

    def noting(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        targets.append(target)
        return in_process(method, target, headers, body)

    with stage(noting, base="/shops/dev") as url:
        done = conform(URL=f"{url}/", **tokens)

    assert done.stdout.startswith(f"{len(CASES)} alike, 0 differ"), done.stdout
    assert {"//orders", "/health//ready", "/health/../orders", "/orders/a%2Fb", "/orders/%zz"} <= {*targets}


def test_other_settings_conform_when_given_as_variables(
    environment: dict[str, str], tmp_path: Path, tokens: dict[str, str]
) -> None:
    builds.build("gcp", tmp_path / "gcp")
    origin, port = "https://shop.example", free_port()
    other = {"CORS_ORIGIN": origin, "DEFAULT_CURRENCY": "JPY", "BASE_PATH": "/shop"}
    with hosts.serving("gcp", tmp_path / "gcp", {**environment, **other}, "127.0.0.1", port):
        url = f"http://127.0.0.1:{port}/shop"

        named = conform(URL=url, **tokens, ORIGIN=origin, CURRENCY="JPY")
        unnamed = conform(URL=url, **tokens)

    assert named.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"
    assert unnamed.returncode == 1
    assert '"default": "JPY"' in unnamed.stdout


def test_docs_case_is_skipped_when_docs_are_off(
    in_process: Transport, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCS", "off")
    with stage(in_process) as url:
        done = conform(URL=url, **tokens)

    assert done.stdout == f"{len(CASES) - 1} alike, 0 differ, 1 left out (1 since DOCS is off)\n"
    assert done.returncode == 0


def test_cases_without_their_token_are_skipped_and_counted(
    in_process: Transport, tokens: dict[str, str]
) -> None:
    needed = [sum(case.caller == caller for case in CASES) for caller in ("stranger", "tenantless")]
    with stage(in_process) as url:
        done = conform(URL=url, TOKEN=f" Bearer {tokens['TOKEN']}\n")

    assert done.stdout == (
        f"{len(CASES) - sum(needed)} alike, 0 differ, {sum(needed)} left out "
        f"({needed[0]} for want of OTHER_TOKEN, {needed[1]} for want of TENANTLESS_TOKEN)\n"
    )
    assert done.returncode == 0


# What differs


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda answer: replace(answer, status=403), ["an unknown path", "status", "404", "403"]),
        (
            lambda answer: replace(answer, headers={**answer.headers, "cache-control": "public"}),
            ["an unknown path", "cache-control", "no-store", "public"],
        ),
        (
            lambda answer: replace(answer, headers={"content-type": answer.headers["content-type"]}),
            ["", "access-control-allow-origin", "*", "absent"],
        ),
        (
            lambda answer: replace(answer, body=answer.body.replace(b"nothing", b"\x1b[31mnothing")),
            ["an unknown path", "body", "There is nothing here", r"There is \x1b[31mnothing here"],
        ),
        (
            lambda answer: replace(answer, headers={**answer.headers, "x-request-id": "client-made-1"}),
            ["", "x-request-id", "the host's own", "client-made-1"],
        ),
        (
            lambda answer: replace(answer, body=b"<html>nginx</html>"),
            ["an unknown path", "body", '{"type":', "<html>nginx</html>"],
        ),
    ],
    ids=["status", "header", "absent header", "body", "request id", "no JSON"],
)
def test_differing_response_is_a_row(
    in_process: Transport, tokens: dict[str, str], change: Change, row: list[str]
) -> None:
    with stage(changing(in_process, change, "GET /nowhere")) as url:
        done = conform(URL=url, **tokens)

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    assert any(
        len(cells) == 4
        and cells[:2] == row[:2]
        and all(part in cell for part, cell in zip(row[2:], cells[2:], strict=True))
        for cells in rows
    ), done.stdout
    assert done.stdout.endswith(f"{len(CASES) - 1} alike, 1 differ, 0 left out\n")
    assert done.returncode == 1


def test_cases_depending_on_a_failed_one_are_skipped(in_process: Transport, tokens: dict[str, str]) -> None:
    def failing(answer: Answer) -> Answer:
        return replace(answer, status=503, body=b"<html>") if answer.status == 201 else answer

    with stage(changing(in_process, failing, "POST /orders")) as url:
        done = conform(URL=url, **tokens)

    assert " not reached)" in done.stdout
    assert "{first.order_id}" not in done.stdout
    assert done.returncode == 1


def test_cross_tenant_list_leak_is_detected(in_process: Transport, tokens: dict[str, str]) -> None:
    def leaking(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        mine = {**headers, "Authorization": f"Bearer {tokens['TOKEN']}"}
        stranger = headers.get("Authorization", "").endswith(tokens["OTHER_TOKEN"])
        return in_process(method, target, mine if stranger and target == "/orders" else headers, body)

    with stage(in_process) as url:
        assert conform(URL=url, TOKEN=tokens["OTHER_TOKEN"]).returncode == 0
    with stage(leaking) as url:
        done = conform(URL=url, **tokens)

    assert "a stranger's list" in done.stdout
    assert done.returncode == 1


def test_tokens_of_the_same_tenant_are_reported(
    in_process: Transport, user_pool: UserPool, tenant: str
) -> None:
    with stage(in_process) as url:
        done = conform(URL=url, TOKEN=user_pool.token(tenant), OTHER_TOKEN=user_pool.token(tenant, "bob"))

    assert "Is OTHER_TOKEN of another tenant than TOKEN?" in done.stdout
    assert done.returncode == 1


# Ends on the way


def test_ctrl_c_prints_the_results_so_far(in_process: Transport, tokens: dict[str, str]) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hanging(answer: Answer) -> Answer:
        reached.set()
        go_on.wait(30)
        return answer

    with stage(changing(in_process, hanging, "GET /orders?limit=0")) as url:
        process = subprocess.Popen(
            COMMAND, cwd=PROJECT, env={**INHERITED, "URL": url, **tokens}, stdout=-1, stderr=-1, text=True
        )
        assert reached.wait(30)
        process.send_signal(signal.SIGINT)
        seen, said = process.communicate(timeout=30)
        go_on.set()

    before = [case.name for case in CASES].index("limit 0")
    assert (
        seen
        == f"{before} alike, 0 differ, {len(CASES) - before} left out ({len(CASES) - before} not reached)\n"
    )
    assert "Traceback" not in said
    assert process.returncode == 130


def test_unreachable_stage_ends_the_run(in_process: Transport, tokens: dict[str, str]) -> None:
    left = iter(range(20))

    def dying(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        next(left)  # then its thread ends, and with it the connection
        return in_process(method, target, headers, body)

    with stage(dying) as url:
        done = conform(URL=url, **tokens)

    assert "The API has stopped answering." in done.stderr
    assert "3 differ" in done.stdout
    assert "no answer: RemoteDisconnected" in done.stdout
    assert done.returncode == 1


def test_early_response_before_the_whole_body_is_used(in_process: Transport, tokens: dict[str, str]) -> None:
    with stage(in_process, handler=HastyHandler) as url:
        done = conform(URL=url, **tokens)

    assert done.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n"


# Nothing to compare


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "URL and TOKEN must be set."),
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
def test_wrong_usage_is_explained(variables: dict[str, str], says: str) -> None:
    done = conform(**variables)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_missing_variables_are_reported_with_instructions() -> None:
    done = conform()

    assert "TOKEN=$(make -s token)" in done.stderr
    assert "OrderApiUrl" in done.stderr


@pytest.mark.parametrize(
    ("answer", "says"),
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
def test_non_order_api_is_reported_in_one_sentence(in_process: Transport, answer: Answer, says: str) -> None:
    with stage(changing(in_process, lambda _: answer)) as url:
        done = conform(URL=url, TOKEN="t")

    assert done.stderr.startswith(says.format(url=url))
    assert len(done.stderr.splitlines()) == 1
    assert (done.returncode, done.stdout) == (2, "")


def test_rejected_token_is_reported_in_one_sentence(in_process: Transport, tokens: dict[str, str]) -> None:
    with stage(in_process) as url:
        ends = [
            conform(URL=url, TOKEN="a.b.c"),
            conform(URL=url, TOKEN=tokens["TOKEN"], OTHER_TOKEN="a.b.c"),
            conform(URL=url, TOKEN=tokens["TENANTLESS_TOKEN"]),
        ]

    assert [done.stderr.partition(":")[0] for done in ends] == [
        "TOKEN is refused",
        "OTHER_TOKEN is refused",
        "TOKEN names no tenant",
    ]
    assert {(done.returncode, done.stdout) for done in ends} == {(2, "")}


def test_unavailable_database_is_reported_in_one_sentence(in_process: Transport) -> None:
    problem = Answer(503, {"x-request-id": "8f2c"}, b'{"title":"Unavailable"}')
    with stage(changing(in_process, lambda _: problem, "GET /orders?limit=1")) as url:
        done = conform(URL=url, TOKEN="a.b.c")

    assert done.stderr.startswith(f"{url}/orders with TOKEN answers 503 ")
    assert "8f2c" in done.stderr
    assert done.returncode == 2


def test_refused_connection_is_reported_in_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    done = conform(URL=url, TOKEN="t")

    assert done.stderr == f"{url}/health cannot be reached: Connection refused\n"
    assert done.returncode == 2


def test_unknown_host_is_reported_in_one_sentence() -> None:
    done = conform(URL="https://api.invalid/dev", TOKEN="t")

    assert done.stderr.startswith("https://api.invalid/dev/health cannot be reached: ")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
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
    path.write_bytes(private + signed.public_bytes(pem))
    return path


def test_https_accepts_only_a_trusted_certificate(
    in_process: Transport, tokens: dict[str, str], certificate: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with stage(in_process, base="/dev", tls=tls) as url:
        untrusted = conform(URL=url, **tokens)
        trusted = conform(URL=url, **tokens, SSL_CERT_FILE=str(certificate))

    assert untrusted.stderr.startswith("The certificate of 127.0.0.1:")
    assert "SSL_CERT_FILE" in untrusted.stderr
    assert untrusted.returncode == 2
    assert trusted.stdout == f"{len(CASES)} alike, 0 differ, 0 left out\n", trusted


def test_https_to_an_http_port_is_explained(in_process: Transport) -> None:
    with stage(in_process) as url:
        done = conform(URL=url.replace("http:", "https:"), TOKEN="t")

    assert "does not speak TLS" in done.stderr
    assert done.returncode == 2
