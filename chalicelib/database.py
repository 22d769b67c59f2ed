"""The way to the database: one tenant, one string, one round trip."""

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor

from chalicelib import settings
from chalicelib.errors import Unavailable
from chalicelib.pool import Connection, Pool, PoolExhausted

Values = Mapping[str, Any]
Row = tuple[Any, ...]
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"

_log = logging.getLogger("order-api")
_VALUE = re.compile(r"%\((\w+)\)s")
_SET_TENANT = "select set_tenant(%(tenant_id)s);\n"
# SQLSTATEs after which the same request may succeed: connection, rollback, resources, operator,
# system, a read-only standby.
_TRANSIENT = ("08", "40", "53", "57", "58", "25006")
# A prepared statement that is not there, one that is there already, and one whose result has changed.
_NOT_AS_PREPARED = ("26000", "42P05", "0A000")
_INTEGRITY = "23"

_pool: Pool | None = None
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
    cannot answer, Refused when it will not.
    """

    def __init__(self, tenant_id: str) -> None:
        if not tenant_id:
            raise ValueError("a scope needs a tenant")
        self._tenant = {"tenant_id": tenant_id}

    def read(self, statement: Statement, **values: Any) -> list[Row]:
        """The rows of a SELECT. Asked again once, if the connection broke on the way."""
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
        def send(connection: Connection, cursor: Cursor) -> list[Row]:
            cursor.execute(self._string(connection, cursor, steps))
            return cursor.fetchall() if cursor.description else []

        try:
            return _on_a_connection(send)
        except ConnectionBroken:
            if not repeatable:
                raise OutcomeUnknown from None
        return _on_a_connection(send)

    def _string(self, connection: Connection, cursor: Cursor, steps: Sequence[Step]) -> bytes:
        """Everything that is sent. What it prepares counts as prepared from here on."""
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
        return first + cursor.mogrify(_SET_TENANT, self._tenant) + b";\n".join(then)


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


class StatementLost(Exception):
    """A session did not have a statement as it was prepared: nothing was done."""


class Refused(Exception):
    """The database refused a statement. Says why without the values: a log may keep it."""

    def __init__(self, error: psycopg2.Error) -> None:
        self.sqlstate = error.pgcode or ""
        about_the_schema = self.sqlstate in ("42501", "42703", "42804", "42883", "42P01")
        reason = error.diag.message_primary if about_the_schema else error.diag.constraint_name
        super().__init__(f"SQLSTATE {self.sqlstate or 'unknown'}: {reason or type(error).__name__}")


def ping() -> None:
    """One trip to the database and back. Raises Unavailable."""

    def send(_: Connection, cursor: Cursor) -> list[Row]:
        cursor.execute("select 1")
        return []

    _on_a_connection(send)


def prepare(statements: Iterable[Statement]) -> None:
    """Open a connection, unless one is at rest, and prepare these on it: then none of them costs more than
    a trip. Raises as TenantScope does, and StatementLost behind a pooler that hands out used sessions.
    """

    def send(connection: Connection, cursor: Cursor) -> list[Row]:
        prepared = connection.prepared
        if prepared is not None:
            new = [each for each in statements if each.prepared and each.name not in prepared]
            prepared.update(each.name for each in new)
            cursor.execute(b"".join(each.prepare for each in new) or b"select 1")
        return []

    _on_a_connection(send)


def close_pool() -> None:
    """Close the idle connections and forget the pool; the next request makes a new one."""
    global _pool, _statements_get_lost  # noqa: PLW0603 (one pool a process)
    with _pool_lock:
        if _pool is not None:
            _pool.close()
        _pool = None
        _statements_get_lost = False


def _on_a_connection(send: Callable[[Connection, Cursor], list[Row]]) -> list[Row]:
    pool = _the_pool()
    connection = _connection(pool)
    driver = connection.driver
    known = len(connection.prepared or ())
    try:
        with driver.cursor() as cursor:
            return send(connection, cursor)
    except psycopg2.Error as error:
        if driver.closed:
            raise _unavailable(error, ConnectionBroken) from None
        code = error.pgcode or ""
        if len(connection.prepared or ()) > known and not code.startswith(_INTEGRITY):
            # Whether the session has what the string was to prepare is not known. (A constraint is
            # violated only behind it, and what was prepared outlives the string's rollback.)
            driver.close()
        if code in _NOT_AS_PREPARED and connection.prepared:
            driver.close()
            raise StatementLost from None
        if code == LOCK_NOT_AVAILABLE:
            raise _unavailable(error, Locked) from None
        if _is_transient(error):
            raise _unavailable(error) from None
        raise Refused(error) from None
    except BaseException:
        # Interrupted half-way: nobody else may find this connection's answer.
        driver.close()
        raise
    finally:
        pool.give_back(connection)


def _connection(pool: Pool) -> Connection:
    try:
        return pool.take()
    except (PoolExhausted, psycopg2.OperationalError) as error:
        raise _unavailable(error) from None


def _the_pool() -> Pool:
    """Made at the first request, never at import: a host may fork after it has imported us."""
    global _pool  # noqa: PLW0603 (one pool a process)
    pool = _pool
    if pool is None:
        with _pool_lock:
            pool = _pool = _pool or _new_pool(settings.database())
    return pool


def _new_pool(database: settings.Database) -> Pool:
    log_in = _log_in(database)

    def connect() -> Connection:
        driver = log_in()
        driver.autocommit = True
        return Connection(driver, prepares=database.prepares(driver.info.host, driver.info.port))

    return Pool(
        connect,
        idle=database.pool_idle,
        most=database.pool_most,
        recycle=database.pool_recycle,
        timeout=database.pool_timeout,
    )


def _prepare_no_more() -> None:
    global _statements_get_lost  # noqa: PLW0603 (one pool a process)
    _statements_get_lost = True
    _the_pool().empty()
    _log.error(
        "prepared statements get lost here, and are not used from now on: behind a pooler in transaction "
        "mode set DB_PREPARE=off"
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
