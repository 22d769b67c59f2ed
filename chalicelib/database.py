"""The way to the database: one tenant, one string, one round trip."""

import logging
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor
from sqlalchemy import ClauseElement, Dialect
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from chalicelib import settings
from chalicelib.errors import Unavailable

Values = Mapping[str, Any]
Row = tuple[Any, ...]
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"

_log = logging.getLogger("order-api")
_DIALECT: Dialect = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
_SET_TENANT = "select set_tenant(%(tenant_id)s);\n"
# SQLSTATEs after which the same request may succeed: connection, rollback, resources, operator,
# system, a read-only standby.
_TRANSIENT = ("08", "40", "53", "57", "58", "25006")

_pool: QueuePool | None = None
_pool_lock = threading.Lock()


class Statement:
    """A SQL expression over the tables, built and compiled to text at its first use, once."""

    def __init__(self, build: Callable[[], ClauseElement]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @cached_property
    def text(self) -> str:
        return str(self._build().compile(dialect=_DIALECT))

    def bound(self, cursor: Cursor, values: Values) -> bytes:
        """The text with its values as literals, made by psycopg2 without asking the server."""
        return cursor.mogrify(self.text, values)

    def bound_rows(self, cursor: Cursor, rows: Sequence[Values]) -> bytes:
        """An INSERT of several rows in one statement; SQLAlchemy compiles it with one row."""
        head, one_row = self.text.split(" VALUES ")
        return head.encode() + b" VALUES " + b", ".join(cursor.mogrify(one_row, row) for row in rows)


Step = tuple[Statement, Values | Sequence[Values]]
"""A statement and its values, or the rows of an INSERT."""


class TenantScope:
    """One verified tenant's way to the database. What it sends is bound to that tenant, always.

    Each call is one string `select set_tenant(...); ...` under autocommit: one round trip and one
    implicit transaction, safe behind a transaction-mode pooler. Every statement gets `tenant_id`
    as a value. Raises Unavailable when the database cannot answer, Refused when it will not.
    """

    def __init__(self, tenant_id: str) -> None:
        if not tenant_id:
            raise ValueError("a scope needs a tenant")
        self._tenant = {"tenant_id": tenant_id}

    def read(self, statement: Statement, **values: Any) -> list[Row]:
        """The rows of a SELECT. Asked again once, if the connection broke on the way."""
        return self._send(
            lambda cursor: [statement.bound(cursor, {**values, **self._tenant})], repeatable=True
        )

    def write(self, *steps: Step, repeatable: bool = False) -> None:
        """All the steps or none. Repeated on a broken connection only if the caller says that is safe."""

        def bound(cursor: Cursor) -> list[bytes]:
            return [
                statement.bound(cursor, {**values, **self._tenant})
                if isinstance(values, Mapping)
                else statement.bound_rows(cursor, [{**row, **self._tenant} for row in values])
                for statement, values in steps
            ]

        self._send(bound, repeatable)

    def _send(self, bound: Callable[[Cursor], list[bytes]], repeatable: bool) -> list[Row]:
        def send(cursor: Cursor) -> list[Row]:
            cursor.execute(cursor.mogrify(_SET_TENANT, self._tenant) + b";\n".join(bound(cursor)))
            return cursor.fetchall() if cursor.description else []

        try:
            return _on_a_connection(send)
        except ConnectionBroken:
            if not repeatable:
                raise OutcomeUnknown from None
        return _on_a_connection(send)


class Locked(Unavailable):
    """Another transaction held a lock for longer than the role's lock_timeout."""


class ConnectionBroken(Unavailable):
    """The connection was lost after something was sent: what the server did is not known."""


class OutcomeUnknown(Unavailable):
    """The connection was lost behind a write that must not be repeated."""

    detail = (
        "The database went away before it answered: it is not known whether this took effect. Look before "
        "you send it again; with an Idempotency-Key it can be repeated safely."
    )


class Refused(Exception):
    """The database refused a statement. Says why without the values: a log may keep it."""

    def __init__(self, error: psycopg2.Error) -> None:
        self.sqlstate = error.pgcode or ""
        about_the_schema = self.sqlstate in ("42501", "42703", "42804", "42883", "42P01")
        reason = error.diag.message_primary if about_the_schema else error.diag.constraint_name
        super().__init__(f"SQLSTATE {self.sqlstate or 'unknown'}: {reason or type(error).__name__}")


def ping() -> None:
    """One trip to the database and back. Raises Unavailable."""

    def send(cursor: Cursor) -> list[Row]:
        cursor.execute("select 1")
        return []

    _on_a_connection(send)


def close_pool() -> None:
    """Close the idle connections and forget the pool; the next request makes a new one."""
    global _pool  # noqa: PLW0603 (one pool a process)
    with _pool_lock:
        if _pool is not None:
            _pool.dispose()
        _pool = None


def _on_a_connection(send: Callable[[Cursor], list[Row]]) -> list[Row]:
    connection = _connection()
    driver: Any = connection.dbapi_connection
    try:
        with driver.cursor() as cursor:
            return send(cursor)
    except psycopg2.Error as error:
        if driver.closed:
            connection.invalidate()
            raise _unavailable(error, ConnectionBroken) from None
        if error.pgcode == LOCK_NOT_AVAILABLE:
            raise _unavailable(error, Locked) from None
        if _is_transient(error):
            raise _unavailable(error) from None
        raise Refused(error) from None
    except BaseException:
        # Interrupted half-way: nobody else may find this connection's answer.
        connection.invalidate()
        raise
    finally:
        connection.close()


def _connection() -> PoolProxiedConnection:
    """A live connection from the pool: those that died while idle are thrown away."""
    pool = _the_pool()
    try:
        while True:
            connection = pool.connect()
            is_fresh = not connection.info
            connection.info["used"] = True
            if is_fresh or not _is_dead(connection.dbapi_connection):
                return connection
            connection.invalidate()
            connection.close()
    except PoolTimeout as error:
        raise _unavailable(error) from None
    except psycopg2.OperationalError as error:
        raise _unavailable(error) from None


def _is_dead(connection: Any) -> bool:
    """Whether the server hung up: an idle connection has nothing to read but its farewell.

    One system call. Asking psycopg2 would not do: it reads the farewell and misses the end behind it.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _the_pool() -> QueuePool:
    """Made at the first request, never at import: a host may fork after it has imported us."""
    global _pool  # noqa: PLW0603 (one pool a process)
    if _pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = _new_pool(settings.database())
    return _pool


def _new_pool(database: settings.Database) -> QueuePool:
    log_in = _log_in(database)

    def connect() -> Any:
        connection = log_in()
        connection.autocommit = True
        return connection

    return QueuePool(
        connect,
        pool_size=database.pool_idle,
        max_overflow=database.pool_most - database.pool_idle,
        recycle=database.pool_recycle,
        timeout=database.pool_timeout,
        reset_on_return=None,  # under autocommit nothing is ever left open
        use_lifo=True,
    )


def _log_in(database: settings.Database) -> Callable[[], Any]:
    """How a connection is opened: with the password as it was given, or as the secret store has it."""
    if database.secret is None:
        return lambda: psycopg2.connect(**database.connect)
    from chalicelib.secrets import Secret

    secret = Secret(database.secret, database.secret_lifetime)

    def log_in() -> Any:
        known = secret.variables()
        try:
            return psycopg2.connect(**settings.login(known))
        except psycopg2.OperationalError:
            # Was the password replaced? A failed connect has no SQLSTATE, and its words are translated.
            newer = secret.instead_of(known)
            if newer is None:
                raise
        return psycopg2.connect(**settings.login(newer))

    return log_in


def _is_transient(error: psycopg2.Error) -> bool:
    if error.pgcode is None:
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return error.pgcode.startswith(_TRANSIENT)


def _unavailable(error: Exception, kind: type[Unavailable] = Unavailable) -> Unavailable:
    """Log why, without what a client sent: SQLSTATE and, where there is none, the driver's words."""
    code = getattr(error, "pgcode", None)
    _log.error("database unavailable: %s", f"SQLSTATE {code}" if code else " ".join(str(error).split()))
    return kind()
