"""The way to the database: one tenant, one string, one round trip."""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor

from chalicelib.database import errors as failures
from chalicelib.database.errors import ConnectionBroken, NoAnswer, OutcomeUnknown, ReadOnly, StatementLost
from chalicelib.database.pool import Connection, Pool, PoolExhausted
from chalicelib.database.read_timeout import Watch
from chalicelib.database.role_check import ROLE_CHECK
from chalicelib.observability import record as telemetry
from chalicelib.settings.database import DatabaseSettings, connect_arguments, database_settings

Values = Mapping[str, Any]
Row = tuple[Any, ...]
SPARE = 0.5
"""Seconds before the host's own deadline at which an answer is given up: enough to say so."""

_log = logging.getLogger("order-api")
_VALUE = re.compile(r"%\((\w+)\)s")
_SET_TENANT = "select set_tenant(%(tenant_id)s);\n"
_SET_TENANT_AND_TIMEOUT = "select set_tenant(%(tenant_id)s, %(milliseconds)s);\n"

Words = Callable[[Connection, Cursor], tuple[bytes, bytes]]
"""What is said to the database on a connection: what comes before the check of a new one, and the rest."""

# libpq says so while it connects. Else, where the server has another style, psycopg2 says it afterwards, in a
# trip of its own that nobody ends when the server is silent. (Spelt as PostgreSQL's default: for "ISO" alone
# PgBouncer sends a SET before each transaction.)
os.environ["PGDATESTYLE"] = "ISO, MDY"

_pool: Pool | None = None
_watch = Watch()
_pool_lock = threading.Lock()
_statements_get_lost = False


class Statement:
    """SQL with named values, `%(order_id)s`: as it is sent with them, and as it is prepared for any.

    Its name in a session says its text, so that no session ever runs another release's statement.
    """

    def __init__(self, text: str, prepared: str | None) -> None:
        """`prepared` says the same in a way that one plan fits all values; None where there is none."""
        self.text, self.prepared = text, prepared
        if prepared is None:
            return
        names = list(dict.fromkeys(_VALUE.findall(prepared)))
        numbered = _VALUE.sub(lambda value: f"${names.index(value[1]) + 1}", prepared).replace("%%", "%")
        self.name = f"order_api_{hashlib.sha256(prepared.encode()).hexdigest()[:16]}"
        self.prepare = f"prepare {self.name} as {numbered};\n".encode()
        self.execute = f"execute {self.name} ({', '.join(f'%({name})s' for name in names)})"

    def __repr__(self) -> str:
        return f"Statement({self.text!r}, {self.prepared!r})"

    def rows(self, cursor: Cursor, rows: Sequence[Values]) -> bytes:
        """An INSERT of several rows in one statement; its text has one row."""
        head, one_row = self.text.split(" VALUES ")
        return head.encode() + b" VALUES " + b", ".join(cursor.mogrify(one_row, row) for row in rows)


Step = tuple[Statement, Sequence[Values]]
"""A statement and its values; an INSERT may have several rows of them."""


class TenantScope:
    """One verified tenant's way to the database. What it sends is bound to that tenant, always.

    Each call is one string `select set_tenant(...); ...` under autocommit: one round trip and one
    implicit transaction. Every statement gets `tenant_id` as a value. With DB_PREPARE=on the string says
    `execute`, behind a `prepare` the first time on a connection. Raises Unavailable when the database
    cannot answer in time, Refused when it will not.
    """

    def __init__(self, tenant_id: str, ends_at: float | None = None) -> None:
        """`ends_at`: when the host will end the request, by time.monotonic(); None where it does not say."""
        if not tenant_id:
            raise ValueError("a scope needs a tenant")
        self._tenant = {"tenant_id": tenant_id}
        self._ends_at = ends_at

    def read(self, statement: Statement, **values: Any) -> list[Row]:
        """The rows of a SELECT, or of what may happen twice. Asked again once, if the connection broke."""
        return self._send([(statement, [values])], repeatable=True)

    def write(self, *steps: Step, repeatable: bool = False) -> None:
        """All the steps or none. Repeated on a broken connection only if the caller says that is safe."""
        self._send(steps, repeatable)

    def _send(self, steps: Sequence[Step], repeatable: bool) -> list[Row]:
        # A string that names a lost statement was refused as a whole: nothing of it has happened.
        try:
            return self._send_once(steps, repeatable)
        except StatementLost:
            _the_pool().empty()
        try:
            return self._send_once(steps, repeatable)
        except StatementLost:
            _prepare_no_more()
        return self._send_once(steps, repeatable)

    def _send_once(self, steps: Sequence[Step], repeatable: bool) -> list[Row]:
        def words(connection: Connection, cursor: Cursor) -> tuple[bytes, bytes]:
            first, set_tenant = self._set_tenant(connection, cursor)
            return first, set_tenant + self._string(connection, cursor, steps)

        try:
            return _on_a_connection(words, self._ends_at)
        except ConnectionBroken:
            if not repeatable:
                raise OutcomeUnknown from None
        except NoAnswer:
            if not repeatable:
                raise OutcomeUnknown from None
            raise
        return _on_a_connection(words, self._ends_at)

    def _string(self, connection: Connection, cursor: Cursor, steps: Sequence[Step]) -> bytes:
        """The statements. What is prepared here counts as prepared from here on."""
        if _statements_get_lost:
            connection.prepared = None
        prepared, first, then = connection.prepared, b"", []
        for statement, rows in steps:
            bound = [{**row, **self._tenant} for row in rows]
            if len(bound) > 1:
                then.append(statement.rows(cursor, bound))
            elif prepared is None or statement.prepared is None:
                then.append(cursor.mogrify(statement.text, bound[0]))
            else:
                if statement.name not in prepared:
                    prepared.add(statement.name)
                    first += statement.prepare
                then.append(cursor.mogrify(statement.execute, bound[0]))
        return first + b";\n".join(then)

    def _set_tenant(self, connection: Connection, cursor: Cursor) -> tuple[bytes, bytes]:
        """In the order of Words. With the time that is left, where an answer may usually take longer."""
        left = _time_left(self._ends_at)
        if left >= connection.patience:
            return b"", cursor.mogrify(_SET_TENANT, self._tenant)
        # The server gives up first, whatever it is at: what it says then is known, and nothing has happened.
        milliseconds = max(1, int(left * 800))
        return cursor.mogrify(_SET_TENANT_AND_TIMEOUT, {**self._tenant, "milliseconds": milliseconds}), b""


def ping(ends_at: float | None = None) -> None:
    """One trip to the database and back. Raises Unavailable."""
    _on_a_connection(lambda _connection, _cursor: (b"", b"select 1"), ends_at)


def prepare(statements: Iterable[Statement]) -> None:
    """Open a connection, unless one is at rest, and prepare these on it: then none of them costs more than
    a trip. Raises as TenantScope does, and StatementLost behind a pooler that hands out used sessions.
    """

    def words(connection: Connection, _: Cursor) -> tuple[bytes, bytes]:
        known = connection.prepared
        new = (
            [] if known is None else [each for each in statements if each.prepared and each.name not in known]
        )
        if known is not None:
            known.update(each.name for each in new)
        return b"", b"".join(each.prepare for each in new) or b"select 1"

    _on_a_connection(words)


def close_pool() -> None:
    """Close the idle connections and forget the pool; the next request makes a new one."""
    global _pool, _statements_get_lost  # noqa: PLW0603 (one pool a process)
    with _pool_lock:
        if _pool is not None:
            _pool.close()
        _pool = None
        _statements_get_lost = False


def _on_a_connection(words: Words, ends_at: float | None = None) -> list[Row]:
    """One trip: say it on a connection of the pool, and hear the rows of its last statement."""
    pool = _the_pool()
    connection = _connection(pool, _time_left(ends_at))
    driver = connection.driver
    known = len(connection.prepared or ())
    try:
        with driver.cursor() as cursor:
            first, rest = words(connection, cursor)
            check = b"" if connection.role_is_safe else ROLE_CHECK
            string = first + check + rest + telemetry.comment()
            patience = min(connection.patience, _time_left(ends_at))
            _watch_over(connection, patience)
            try:
                with telemetry.trip():
                    cursor.execute(string)
            finally:
                _watch.end(connection)
            connection.role_is_safe = True
            return cursor.fetchall() if cursor.description else []
    except psycopg2.Error as error:
        failure = failures.of(error, connection, prepared_more=len(connection.prepared or ()) > known)
        turned_reader = isinstance(failure, ReadOnly) and not connection.is_new()
        if turned_reader or (connection.cut and patience == connection.patience):
            # All of them lead to the same server that is the primary no more, or to the same silence. (In the
            # place of a new one another would find the same reader, and everybody would connect for nothing.)
            pool.empty()
        raise failure from None
    except BaseException:
        # Interrupted half-way: nobody else may find this connection's answer.
        driver.close()
        raise
    finally:
        pool.give_back(connection)


def _connection(pool: Pool, time_left: float) -> Connection:
    try:
        with telemetry.pool_wait():
            return pool.take(time_left)
    except (PoolExhausted, psycopg2.OperationalError, OSError) as error:  # OSError: no descriptor is left
        raise failures.unavailable(error) from None


def _watch_over(connection: Connection, seconds: float) -> None:
    try:
        _watch.begin(connection, seconds)
    except RuntimeError as error:  # no thread can be started
        raise failures.unavailable(error) from None


def _the_pool() -> Pool:
    """Made at the first request, never at import: a host may fork after it has imported us."""
    global _pool  # noqa: PLW0603 (one pool a process)
    pool = _pool
    if pool is None:
        with _pool_lock:
            pool = _pool = _pool or _new_pool(database_settings())
    return pool


def _new_pool(database: DatabaseSettings) -> Pool:
    log_in = _log_in(database)
    if database.unsafe_role:
        _log.warning(
            "DB_ALLOW_UNSAFE_ROLE=1: nobody checks that row-level security binds the database's role"
        )

    def connect() -> Connection:
        driver = log_in()
        driver.autocommit = True
        return Connection(
            driver,
            prepares=database.prepares(driver.info.host, driver.info.port),
            patience=database.read_timeout,
            role_is_safe=database.unsafe_role,
        )

    return Pool(
        connect,
        idle=database.pool_idle,
        most=database.pool_most,
        recycle=database.pool_recycle,
        timeout=database.pool_timeout,
    )


def _time_left(ends_at: float | None) -> float:
    """Seconds until an answer must be there for the host to hear of it. Raises Unavailable without any."""
    if ends_at is None:
        return float("inf")
    left = ends_at - SPARE - time.monotonic()
    if left <= 0:
        raise failures.unavailable(TimeoutError("the host's deadline is too near to send anything"))
    return left


def _prepare_no_more() -> None:
    global _statements_get_lost  # noqa: PLW0603 (one pool a process)
    _statements_get_lost = True
    _the_pool().empty()
    _log.error(
        "prepared statements get lost here, and are not used from now on: behind a pooler in transaction "
        "mode set DB_PREPARE=off"
    )


def _log_in(database: DatabaseSettings) -> Callable[[], Any]:
    """How a connection is opened: with the password as it was given, or as the secret store has it."""
    if database.secret is None:
        return lambda: psycopg2.connect(**database.connect)
    from chalicelib.settings.secrets import Secret

    secret = Secret(database.secret, database.secret_lifetime)

    def log_in() -> Any:
        known = secret.variables()
        try:
            return psycopg2.connect(**connect_arguments(known))
        except psycopg2.OperationalError:
            # Was the password replaced? A failed connect has no SQLSTATE, and its words are translated.
            newer = secret.instead_of(known)
            if newer is None:
                raise
        return psycopg2.connect(**connect_arguments(newer))

    return log_in
