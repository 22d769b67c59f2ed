"""HTTP: requests per second of one worker, at the production server of Google's functions and at uvicorn.

wrk sends requests to both, one after the other in each round, with a real RS256 token. FastAPI verifies it
on each request, as in PyJWT's documentation; this project caches verified tokens. Nothing is pinned.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from bench import operations, plots
from bench.contenders import FASTAPI, INSTALLED, OURS, Contender
from bench.figures import Json
from bench.operations import TITLES
from bench.report import Table, ratio
from bench.run import Run
from bench.warm import rotated
from deploy import hosts as builds
from local import hosts
from local.issuer import CLIENT_ID, ISSUER, USER_POOL_ARN, Issuer

TITLE = "HTTP"
MEASURED = ("create", "get", "list")
CONNECTIONS = 8
THREADS = "4"
"""gunicorn's, as `make deploy-run` sets it; FastAPI's own pool has 40."""
TIMEOUT = "30s"
"""A request that takes longer counts as broken; wrk's own 2 seconds would hide the slow ones."""
SCRIPT = Path(__file__).with_name("wrk.lua")
UVICORN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from uvicorn.main import main; main()"
HOST = Contender("host", "functions-framework alone")
"""This project's server with an empty function, through Flask's routing, which this project bypasses."""
NOTHING = """
import functions_framework

@functions_framework.http
def orders_api(request):
    return "{}"
"""
NAMES = {
    HOST.key: "functions-framework on gunicorn, a function that answers {}",
    OURS.key: "this project, functions-framework on gunicorn",
    FASTAPI.key: "FastAPI + SQLModel, uvicorn",
}


@dataclass(frozen=True)
class Request:
    method: str
    paths: list[str]
    token: str


def measure(run: Run) -> Json:
    """Requests per second, p50 and p99 of create, get and list, and their ratios; or why there are none."""
    servers = [*(contender for contender in run.contenders if contender.key in NAMES), HOST]
    wrk = shutil.which("wrk")
    if wrk is None:
        missing = "wrk is missing, the HTTP section was SKIPPED. To get it on Debian: apt-get install wrk"
        run.warn(missing)
        return {"skipped": missing}
    advance = run.steps(TITLE, run.size.http_rounds * len(MEASURED) * len(servers))
    took: dict[tuple[str, str], list[Json]] = {(s.key, o): [] for s in servers for o in MEASURED}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        issuer = Issuer(Path(folder))
        requests = _requests(run, issuer)
        jwks_url = stack.enter_context(_keys(issuer))
        urls = {server.key: stack.enter_context(_serving(server, run, jwks_url)) for server in servers}
        _same_answers({key: url for key, url in urls.items() if key != HOST.key}, requests)
        for url in urls.values():
            for request in requests.values():
                _wrk(wrk, url, request, 1)
        for number in range(run.size.http_rounds):
            for operation in MEASURED:
                for server in rotated(servers, number):
                    done = _wrk(wrk, urls[server.key], requests[operation], run.size.http_seconds)
                    took[server.key, operation].append(done)
                    advance()
    results = {
        server.key: {
            "name": NAMES[server.key],
            "operations": {operation: _summary(took[server.key, operation]) for operation in MEASURED},
        }
        for server in servers
    }
    return {"servers": results, "ratios": _ratios(results), "connections": CONNECTIONS}


def _requests(run: Run, issuer: Issuer) -> dict[str, Request]:
    reader, writer = (issuer.token(tenant, "alice") for tenant in (operations.READER, operations.WRITER))
    return {
        "create": Request("POST", ["/orders"], writer),
        "get": Request("GET", [f"/orders/{order_id}" for order_id in run.database.sampled], reader),
        "list": Request("GET", [f"/orders?limit={operations.LIMIT}"], reader),
    }


@contextmanager
def _keys(issuer: Issuer) -> Iterator[str]:
    """Serves the public key; yields its URL."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(issuer.jwks()).encode())

        def log_message(self, *_: object) -> None:
            """Does nothing: the terminal shows the progress."""

    keys = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=keys.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{keys.server_port}/jwks.json"
    finally:
        keys.shutdown()
        keys.server_close()


@contextmanager
def _serving(contender: Contender, run: Run, jwks_url: str) -> Iterator[str]:
    """One worker of its production server; yields its address."""
    variables = {
        "DATABASE_URL": run.database.url(contender.role),
        "AUTH_AUDIENCE": CLIENT_ID,
        "AUTH_ISSUER": ISSUER,
        "AUTH_JWKS_URL": jwks_url,
        "NO_PROXY": "127.0.0.1",
    }
    port = _free_port()
    if contender is HOST:
        folder = INSTALLED / "gcp-alone"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_text(NOTHING)
        alone = {"WORKERS": "1", "THREADS": THREADS}
        serving: AbstractContextManager[object] = hosts.serving("gcp", folder, alone, "127.0.0.1", port)
    elif contender is OURS:
        with redirect_stdout(io.StringIO()):
            builds.build("gcp", INSTALLED / "gcp")
        own = {"AUTH_PROVIDER": "cognito", "COGNITO_USER_POOL_ARN": USER_POOL_ARN, "DB_PREPARE": "on"}
        own |= {"WORKERS": "1", "THREADS": THREADS}
        serving = hosts.serving("gcp", INSTALLED / "gcp", {**variables, **own}, "127.0.0.1", port)
    else:
        serving = _uvicorn(contender, variables, port)
    with serving:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _uvicorn(contender: Contender, variables: Mapping[str, str], port: int) -> Iterator[None]:
    """As in production, without an access log: this project's server writes none either."""
    tree = contender.trees.with_bytecode
    own = ["main:app", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-I", "-S", "-B", "-c", UVICORN, str(tree), *own]
    quiet = ["--no-access-log", "--log-level", "error"]
    process = subprocess.Popen([*command, *quiet], cwd=tree, env={"PATH": os.environ["PATH"], **variables})  # noqa: S603
    try:
        _wait(process, port)
        yield
    finally:
        hosts.end(process)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + hosts.START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("uvicorn did not start: see its output above") from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _same_answers(urls: Mapping[str, str], requests: Mapping[str, Request]) -> None:
    """Raises SystemExit unless every server answers each request alike."""
    for operation, request in requests.items():
        bodies = {key: operations.masked(operation, _sent(url, request)) for key, url in urls.items()}
        first = next(iter(bodies))
        for key, body in bodies.items():
            if body != bodies[first]:
                raise SystemExit(f"{NAMES[key]} answers {operation} otherwise than {NAMES[first]}: {body}")


def _sent(url: str, request: Request) -> str:
    body = operations.BODY.encode() if request.method == "POST" else None
    headers = {"Authorization": f"Bearer {request.token}", "Content-Type": "application/json"}
    http_request = urllib.request.Request(url + request.paths[0], body, headers, method=request.method)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(http_request, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def _wrk(wrk: str, url: str, request: Request, seconds: int) -> Json:
    variables = {
        "BENCH_METHOD": request.method,
        "BENCH_PATHS": " ".join(request.paths),
        "BENCH_TOKEN": request.token,
        "BENCH_BODY": operations.BODY,
    }
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", TIMEOUT, "-s", str(SCRIPT), url]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)  # noqa: S603
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    results: Json = json.loads(lines[-1])
    if results["refused"]:
        raise SystemExit(f"{url}{request.paths[0]} refused {results['refused']} of wrk's requests: {results}")
    return results


def _summary(rounds: list[Json]) -> Json:
    return {
        "per_second": median(figures["requests"] / figures["microseconds"] * 1e6 for figures in rounds),
        "p50_ms": median(figures["p50_us"] for figures in rounds) / 1e3,
        "p99_ms": median(figures["p99_us"] for figures in rounds) / 1e3,
        "requests": sum(figures["requests"] for figures in rounds),
        "broken": sum(figures["broken"] for figures in rounds),
    }


def _ratios(results: Json) -> Json:
    """Requests per second of this project, as a multiple of FastAPI's."""
    if FASTAPI.key not in results:
        return {}
    ours, fastapi = (results[contender.key]["operations"] for contender in (OURS, FASTAPI))
    return {
        operation: ours[operation]["per_second"] / fastapi[operation]["per_second"] for operation in MEASURED
    }


def tables(results: Json) -> list[Table]:
    title = "HTTP: requests per second of one worker"
    if "skipped" in results:
        return [Table(title, ["server"], [], [results["skipped"]])]
    columns = ["server", *[f"{TITLES[operation]}: requests/s (p50 / p99 ms)" for operation in MEASURED]]
    rows = [
        [
            server["name"],
            *[
                f"{figures['per_second']:,.0f} ({figures['p50_ms']:.1f} / {figures['p99_ms']:.1f})"
                for figures in server["operations"].values()
            ],
        ]
        for server in results["servers"].values()
    ]
    if results["ratios"]:
        rows.append(
            ["this project against FastAPI", *[ratio(results["ratios"][operation]) for operation in MEASURED]]
        )
    notes = [
        f"wrk with {results['connections']} connections, medians of the rounds; its p99 also counts requests "
        "that would have been sent during a stall. One token throughout: FastAPI verifies it each time, this "
        "project caches it."
    ]
    for server in results["servers"].values():
        if broken := sum(figures["broken"] for figures in server["operations"].values()):
            notes.append(f"{server['name']}: {broken} REQUESTS GOT NO ANSWER.")
    return [Table(title, columns, rows, notes)]


def plot(results: Json, folder: Path) -> None:
    if "skipped" in results:
        return
    plots.grouped_bars(
        folder / "http.png",
        "Requests per second of one worker",
        "requests/s",
        [TITLES[operation] for operation in MEASURED],
        {
            server["name"]: [server["operations"][operation]["per_second"] for operation in MEASURED]
            for server in results["servers"].values()
        },
        label="{:,.0f}",
        log=False,
    )


def against_fastapi(operation: str, results: Json) -> float | None:
    ratios: dict[str, float] = results.get("ratios", {})
    return ratios.get(operation)
