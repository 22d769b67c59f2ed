"""`make bench-scale`: the time of a request with a thousand to ten million orders in the database.

The same requests go in turn to two databases of one server, one that grows and one that stays empty, so that
their ratio compares times of the same minute on the same machine.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import contenders, cores, load, machine, report, scale_report, scale_requests
from bench.contenders import OURS, PROJECT
from bench.database import Database, pinned
from bench.figures import summary
from bench.instances import Instance
from bench.load import HUGE
from bench.scale_report import Step
from bench.scale_requests import CALLS, EMPTY, FEW, LIMIT, MINE, OPERATIONS, Operation, Requests
from local import postgres
from local.database import embedded
from migrations.migrate import migrate

Json = dict[str, Any]
Advance = Callable[[float], None]
Turn = tuple[str, Operation, Instance]
"""The database (`many` or `few`), the operation, and the instance that runs it."""

RESULTS = PROJECT / "bench" / "results"
ROUNDS, WARM_UP = 100, 20
BYTES_AN_ORDER, BYTES_BESIDE = 900, 6e9
"""On disk, with its items and indexes; and of the server, its write-ahead log included."""
MIN_BUFFERS = 1e9
_WITHOUT_HUGE_PAGES = (
    "PostgreSQL has no huge pages here: each connection pays for its first touch of each page, and the "
    "ratios are higher than on a managed server. As root: sysctl -w vm.nr_hugepages=N, where N times 2 MB is "
    "a little more than shared_buffers"
)
WHILE_LOADING = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
}


@dataclass(frozen=True)
class Databases:
    """One server's two databases, the one that grows and the empty one, each with its superuser's cursor."""

    server: Database
    many: Any
    few: Any

    def url(self, role: str, side: str, **parameters: str) -> str:
        name = {"many": "orders", "few": "orders_empty"}[side]
        return str(make_dsn(self.server.urls.app, user=role, dbname=name, **parameters))


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    chosen = _chosen()
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        header, steps = _measured(chosen, console)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. Nothing was written.") from None
    tables = scale_report.tables(steps)
    for table in tables:
        table.show(console)
    chosen.results.mkdir(parents=True, exist_ok=True)
    results = {"header": header, "steps": [vars(step) for step in steps]}
    (chosen.results / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.results / "scale.md").write_text(report.markdown(header, tables))
    scale_report.plot(steps, chosen.results / "scale.png")
    print(f"Written: {chosen.results}/scale.md, scale.json and scale.png")


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--orders", default=os.environ.get("ORDERS") or "1000000", help="how many to load")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer are quicker and less certain")
    parser.add_argument("--results", type=Path, help="where to write")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SCALE_DATA") or None,
        help="a folder that keeps the loaded orders for the next run; SCALE_DATA",
    )
    parser.add_argument(
        "--shared-buffers",
        default=os.environ.get("SHARED_BUFFERS") or None,
        help="PostgreSQL's, such as 1GB; otherwise as much as the orders need, at most half of the memory",
    )
    chosen = parser.parse_args()
    text = chosen.orders
    chosen.orders = int(text) if text.isascii() and text.isdigit() else 0
    if chosen.orders % load.BLOCK or not 0 < chosen.orders <= load.MAX_ORDERS:
        raise SystemExit(
            f"ORDERS is {text!r}: use a multiple of {load.BLOCK} up to {load.MAX_ORDERS}, "
            "as in make bench-scale ORDERS=10000000"
        )
    chosen.shared_buffers = chosen.shared_buffers or _shared_buffers(chosen.orders)
    # Published results come from a complete run: a partial run must not overwrite them.
    is_whole = chosen.orders == load.MAX_ORDERS and chosen.rounds >= ROUNDS
    chosen.results = chosen.results or (RESULTS if is_whole else RESULTS / "partial")
    return chosen


def _shared_buffers(orders: int) -> str:
    """Enough for the whole database, because not every machine's page cache keeps its files."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{min(max(orders * BYTES_AN_ORDER, MIN_BUFFERS), memory / 2) / 1e6:.0f}MB"


def _measured(chosen: argparse.Namespace, console: Console) -> tuple[Json, list[Step]]:
    header: Json = machine.described(f"make bench-scale ORDERS={chosen.orders}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        installing = progress.add_task("Installing", total=1)
        contenders.install([OURS], lambda _: progress.advance(installing))
        core = cores.of_contenders()
        cores.leave(core)
        with _folder(chosen) as folder, _databases(folder, chosen.shared_buffers) as databases:
            header |= _conditions(databases, chosen.shared_buffers, core)
            if "huge pages on" not in header["PostgreSQL"]:
                console.print(_WITHOUT_HUGE_PAGES, style="bold red")
            before = load.loaded_orders(databases.many)
            if before > chosen.orders:
                raise SystemExit(f"{folder} holds {before} orders: use ORDERS={before} or more")
            bar = progress.add_task("Orders loaded", total=chosen.orders, completed=before)
            steps: list[Step] = []
            for orders in _numbers(before, chosen.orders):
                step = _grow(databases.many, before, orders, partial(progress.advance, bar))
                task = progress.add_task(f"Measured at {orders:,} orders", total=2 * chosen.rounds)
                _measure(step, databases, core, chosen.rounds, partial(progress.advance, task))
                steps.append(step)
                before = orders
    return header, steps


def _numbers(before: int, orders: int) -> list[int]:
    """The numbers of orders at which it is measured: powers of ten, and the last."""
    powers = [10**exponent for exponent in range(3, 8)]
    smallest = max(before, load.BLOCK)
    return [number for number in sorted({*powers, before, orders}) if smallest <= number <= orders]


def _conditions(databases: Databases, shared_buffers: str, core: int | None) -> Json:
    together = "the functions and their database connections together"
    databases.many.execute("show huge_pages_status")
    ((huge_pages,),) = databases.many.fetchall()
    return {
        "PostgreSQL": f"{databases.server.version}, shared_buffers {shared_buffers}, huge pages "
        f"{huge_pages}, else as it comes; measured behind vacuum analyze, with autovacuum off",
        "while loading": ", ".join(f"{name} {value}" for name, value in WHILE_LOADING.items()),
        "caches": "warm: shared_buffers were filled by pg_prewarm; what they cannot hold is read from files",
        "empty": f"a second database of the same server, with {EMPTY} orders of one shop and what is placed "
        "there, and enable_seqscan off",
        "pinned": f"{together} on core {core}"
        if core is not None
        else "NOTHING: this system cannot pin processes to a core",
        "this project": machine.versions(OURS),
    }


@contextmanager
def _folder(chosen: argparse.Namespace) -> Iterator[Path]:
    """The server's data folder: SCALE_DATA, or a temporary one. Raises SystemExit if the disk is too full."""
    if chosen.data is None:
        # Not in the project: as root, the server's own user must be able to enter every folder above it.
        folder = Path(tempfile.mkdtemp(prefix="order-api-scale-"))
    else:
        folder = chosen.data.resolve()
        if opened := postgres.folders_to_open(folder):
            print(
                "You are root, and PostgreSQL runs as the user embedded_postgres. To let it in, these "
                f"folders become readable for everyone: {', '.join(map(str, opened))}",
                file=sys.stderr,
            )
        folder.mkdir(parents=True, exist_ok=True)
    try:
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        needed = chosen.orders * BYTES_AN_ORDER + BYTES_BESIDE - held
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(
                f"{folder} has {free / 1e9:.0f} GB free, and {chosen.orders} orders need "
                f"{needed / 1e9:.0f} GB: use fewer ORDERS, or name a folder elsewhere with SCALE_DATA=..."
            )
        yield folder
    finally:
        if chosen.data is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _databases(folder: Path, shared_buffers: str) -> Iterator[Databases]:
    with embedded(folder) as urls, _superuser(urls.app) as cursor:
        _set(cursor, {"shared_buffers": shared_buffers, "autovacuum": "off"})
    # The server restarts between the two blocks.
    with embedded(folder) as urls, _superuser(urls.app) as many:
        many.execute("select from pg_database where datname = 'orders_empty'")
        if not many.rowcount:
            many.execute("create database orders_empty owner orders_owner")
        many.execute("select current_setting('server_version')")
        ((version,),) = many.fetchall()
        databases = Databases(Database(urls, folder, version, []), many, None)
        migrate(databases.url("orders_owner", "few"))
        with _superuser(databases.url("postgres", "few")) as few:
            # With few orders PostgreSQL would choose a sequential scan, and keep that plan for many.
            few.execute("alter role orders_app in database orders_empty set enable_seqscan = off")
            yield Databases(databases.server, many, few)


@contextmanager
def _superuser(url: str) -> Iterator[Any]:
    with closing(psycopg2.connect(make_dsn(url, user="postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def _grow(cursor: Any, before: int, orders: int, advance: Advance) -> Step:
    """Load up to that many orders, and restore the server's settings for measuring."""
    _set(cursor, WHILE_LOADING)
    started = time.monotonic()
    load.load(cursor, before, orders, advance)
    seconds = time.monotonic() - started
    _set(cursor, dict.fromkeys(WHILE_LOADING))
    cursor.execute("vacuum analyze")
    cursor.execute("checkpoint")
    cursor.execute("create extension if not exists pg_prewarm")
    cursor.execute("select pg_prewarm(oid) from pg_class where relname ~ '^order(s|_items)(_|$)'")
    cursor.execute("select count(*) from orders where tenant_id = %s", [load.shop(HUGE)])
    ((of_the_huge,),) = cursor.fetchall()
    cursor.execute("select pg_database_size(current_database())")
    ((size,),) = cursor.fetchall()
    return Step(
        orders=orders,
        shops=load.tenants_at(orders),
        of_the_huge=of_the_huge,
        deep_page=scale_requests.deep_page(of_the_huge),
        database_bytes=size,
        loaded=orders - before,
        load_seconds=seconds,
    )


def _set(cursor: Any, settings: Mapping[str, str | None]) -> None:
    """Set for the whole server; None resets to PostgreSQL's default."""
    for name, value in settings.items():
        cursor.execute(f"alter system {f'set {name} = {value!r}' if value else f'reset {name}'}")
    cursor.execute("select pg_reload_conf()")
    time.sleep(0.5)  # the server's processes reload asynchronously


def _measure(step: Step, databases: Databases, core: int | None, rounds: int, advance: Advance) -> None:
    """Measure, and store the times in the step."""
    samples, few = scale_requests.samples(step.orders), scale_requests.few_orders()
    databases.few.execute("truncate orders, order_items, idempotency_keys")
    load.copy(databases.few, few)
    databases.few.execute("analyze")
    requests = {
        "many": scale_requests.among_many(samples, databases.many, step.of_the_huge),
        "few": scale_requests.among_few(samples, few),
    }
    with pinned(databases.server, core), ExitStack() as stack:
        turns = [turn for side in requests for turn in _turns(databases, side, requests[side], core, stack)]
        # Reads first: placed orders would be on page 1, and their size differs from the loaded orders'.
        for writes in (False, True):
            times = _times([turn for turn in turns if turn[1].writes is writes], rounds, advance)
            for (side, key), nanoseconds in times.items():
                getattr(step, side)[key] = summary(nanoseconds)
    _delete_placed(databases.many, scale_requests.shops_of(samples))


def _turns(
    databases: Databases, side: str, requests: Requests, core: int | None, stack: ExitStack
) -> Iterator[Turn]:
    """Each operation for this database, and an instance that has its events."""
    for waits, parameters in ((True, {}), (False, {"options": "-c synchronous_commit=off"})):
        variables = {"DATABASE_URL": databases.url(OURS.role, side, **parameters)}
        instance = stack.enter_context(Instance(OURS, OURS.trees.with_bytecode, variables, core))
        instance.imported()
        for operation in OPERATIONS:
            if operation.waits is waits and requests.get(operation.key):
                _set_up(instance, operation, requests[operation.key])
                yield side, operation, instance


def _set_up(instance: Instance, operation: Operation, events: Sequence[Json]) -> None:
    """Send the operation's events to the instance. Raises SystemExit if the first gets a wrong answer."""
    instance.ask("learn", operation=operation.key, events=events, status=operation.status)
    answer = instance.ask("call", event=events[0])
    page = json.loads(answer["body"]).get("orders")
    is_whole = page is None or len(page) in (FEW if operation is MINE else (LIMIT,))
    if answer["status"] != operation.status or not is_whole:
        raise SystemExit(f"{operation.title} is answered {answer['status']}: {answer['body'][:500]}")


def _times(turns: list[Turn], rounds: int, advance: Advance) -> dict[tuple[str, str], list[int]]:
    """Nanoseconds of each call by database and operation. Each round runs all of them in random order."""
    times: dict[tuple[str, str], list[int]] = {(side, operation.key): [] for side, operation, _ in turns}
    for _, operation, instance in turns:
        calls = WARM_UP if operation.calls == CALLS else operation.calls
        instance.ask("batch", operation=operation.key, calls=calls)
    for number in range(rounds):
        random.Random(number).shuffle(turns)  # noqa: S311 (the same order in every run)
        for side, operation, instance in turns:
            took = instance.ask("batch", operation=operation.key, calls=operation.calls)
            times[side, operation.key] += took["wall"]
        advance(1)
    return times


def _delete_placed(cursor: Any, shops: Sequence[str]) -> None:
    """Delete the orders that were placed while measuring; the next step vacuums before it measures."""
    for table in ("order_items", "orders"):
        cursor.execute(
            f"delete from {table} where tenant_id = any(%s) and order_id > %s",  # noqa: S608
            [list(shops), load.id_after_all()],
        )


if __name__ == "__main__":
    main()
