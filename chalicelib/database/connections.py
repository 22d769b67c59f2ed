"""The database connections of one process: opening them, sending on them, and acting on their errors."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Driver
from psycopg2.extensions import cursor as Cursor

from chalicelib.database import errors
from chalicelib.database.pool import Connection, Pool, PoolExhausted
from chalicelib.database.read_timeout import ReadTimeout
from chalicelib.database.role_check import ROLE_CHECK
from chalicelib.database.schema_check import SCHEMA_CHECK, SCHEMA_VERSION, SELECT_VERSION, warnings
from chalicelib.database.statement import Row, Statement
from chalicelib.observability import record
from chalicelib.settings.database import DatabaseSettings, connect_arguments

BuildSql = Callable[[Connection, Cursor], tuple[bytes, bytes]]
"""Builds one request's SQL: (text before the role check, text after it)."""
DEADLINE_MARGIN = 0.5
"""Seconds before the host's deadline at which a request is given up: enough to send the error."""

_log = logging.getLogger("order-api")

# libpq sends this while it connects. Without it, where the server has another style, psycopg2 sends a SET
# afterwards: a round trip without a timeout. (Spelt as PostgreSQL's default: for "ISO" alone PgBouncer
# sends a SET before each transaction.)
os.environ["PGDATESTYLE"] = "ISO, MDY"


class Connections:
    """A pool of connections, their read timeout, and whether they may prepare statements.

    Connects at the first request. Safe to share between threads; not across a fork once it has connected.
    """

    def __init__(self, database: DatabaseSettings) -> None:
        if database.unsafe_role:
            _log.warning("DB_ALLOW_UNSAFE_ROLE=1: no check that row-level security binds the database's role")
        self.pool = Pool(
            _connector(database),
            max_idle=database.pool_idle,
            max_open=database.pool_max,
            recycle=database.pool_recycle,
            timeout=database.pool_timeout,
        )
        self.read_timeout = ReadTimeout()
        self._may_prepare = True
        self._schema_is_checked = False

    def send(self, build_sql: BuildSql, deadline: float | None = None) -> list[Row]:
        """One round trip; the rows of the last statement. Raises Unavailable, Refused or StatementLost."""
        connection = self._take(time_left(deadline))
        if not self._may_prepare:
            connection.prepared = None
        prepared_before = len(connection.prepared or ())
        seconds = connection.read_timeout
        try:
            with connection.driver.cursor() as cursor:
                first, rest = build_sql(connection, cursor)
                sql = first + self._checks(connection) + rest + record.comment()
                seconds = min(seconds, time_left(deadline))
                self._execute(connection, cursor, sql, seconds)
                if not connection.role_is_safe:
                    self._checked(connection)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            failure = errors.classify(
                error,
                connection,
                prepared_more=len(connection.prepared or ()) > prepared_before,
                waited_in_full=seconds == connection.read_timeout,
            )
            if failure.closes_connection:
                connection.driver.close()
            if failure.empties_pool:
                self.pool.empty()
            try:
                raise _logged(failure) from None
            finally:
                del failure  # else the failure, its exception and this frame form a reference cycle
        except BaseException:
            # Interrupted: the connection's next request must not read this request's answer.
            connection.driver.close()
            raise
        finally:
            self.pool.give_back(connection)

    def ping(self, deadline: float | None = None) -> None:
        """One round trip without effect. Raises Unavailable."""
        self.send(lambda _connection, _cursor: (b"", b"select 1"), deadline)

    def check_schema(self, deadline: float | None = None) -> None:
        """One round trip. Raises Unavailable, also where the schema is older than this release needs."""
        try:
            ((version,),) = self.send(lambda _connection, _cursor: (b"", SELECT_VERSION), deadline)
        except errors.Refused as refused:
            _log.error("schema_version cannot be read: %s", refused)
            raise errors.OutdatedSchema("that cannot be read", SCHEMA_VERSION) from None
        if version is None:
            _log.error("schema_version shows no row: row-level security is on there, or the row was deleted")
            raise errors.OutdatedSchema("that cannot be read", SCHEMA_VERSION)
        if version < SCHEMA_VERSION:
            raise errors.OutdatedSchema(version, SCHEMA_VERSION)

    def prepare(self, statements: Iterable[Statement[Any]]) -> None:
        """Connect, unless a connection is idle, and prepare these, so that each costs one round trip later.

        Raises as `send` does: StatementLost behind a pooler that hands out used sessions.
        """

        def build_sql(connection: Connection, _: Cursor) -> tuple[bytes, bytes]:
            prepared = connection.prepared
            if prepared is None:
                return b"", b"select 1"
            missing = [
                statement
                for statement in statements
                if statement.prepared is not None and statement.name not in prepared
            ]
            prepared.update(statement.name for statement in missing)
            return b"", b"".join(statement.prepare for statement in missing) or b"select 1"

        self.send(build_sql)

    def stop_preparing(self) -> None:
        """Send every statement as text from now on: sessions lose what they prepared."""
        self._may_prepare = False
        self.pool.empty()
        _log.error(
            "prepared statements get lost here, and are not used from now on: behind a pooler in transaction "
            "mode set DB_PREPARE=off"
        )

    def close(self) -> None:
        """Close idle connections now and busy ones after their request."""
        self.pool.close()
        self.read_timeout.close()

    def _take(self, seconds: float) -> Connection:
        try:
            with record.pool_wait():
                return self.pool.take(seconds)
        except (PoolExhausted, psycopg2.OperationalError, OSError) as error:  # OSError: out of descriptors
            raise _logged(errors.unavailable(error)) from None

    def _checks(self, connection: Connection) -> bytes:
        """What a session's first string checks: the role in each, the schema once in a process."""
        if connection.role_is_safe:
            return b""
        return ROLE_CHECK if self._schema_is_checked else ROLE_CHECK + SCHEMA_CHECK

    def _checked(self, connection: Connection) -> None:
        connection.role_is_safe = True
        if not self._schema_is_checked:
            self._schema_is_checked = True
            for warning in warnings(connection.driver.notices):
                _log.warning("%s", warning)

    def _execute(self, connection: Connection, cursor: Cursor, sql: bytes, seconds: float) -> None:
        try:
            self.read_timeout.start(connection, seconds)
        except RuntimeError as error:  # no thread can be started
            raise _logged(errors.unavailable(error)) from None
        try:
            with record.trip():
                cursor.execute(sql)
        finally:
            self.read_timeout.stop(connection)


def time_left(deadline: float | None) -> float:
    """Seconds until a request is given up; infinite without a deadline. Raises Unavailable at zero."""
    if deadline is None:
        return float("inf")
    seconds = deadline - DEADLINE_MARGIN - time.monotonic()
    if seconds <= 0:
        raise _logged(errors.unavailable(TimeoutError("the host's deadline is too near to send anything")))
    return seconds


def _logged(failure: errors.Failure) -> Exception:
    """The failure's exception, to be raised."""
    if failure.log:
        _log.error("%s", failure.log)
    return failure.error


def _connector(database: DatabaseSettings) -> Callable[[], Connection]:
    log_in = _log_in(database)

    def connect() -> Connection:
        driver = log_in()
        driver.autocommit = True
        return Connection(
            driver,
            prepares=database.prepares(driver.info.host, driver.info.port),
            read_timeout=database.read_timeout,
            role_is_safe=database.unsafe_role,
        )

    return connect


def _log_in(database: DatabaseSettings) -> Callable[[], Driver]:
    """Opens a connection with the password of the settings, or with the one in the secret store."""
    if database.secret is None:
        return lambda: _connect(database.connect)
    from chalicelib.settings.secrets import Secret

    secret = Secret(database.secret, database.secret_lifetime)

    def log_in() -> Driver:
        used = secret.variables()
        try:
            return _connect(connect_arguments(used))
        except psycopg2.OperationalError:
            # Was the password replaced? A failed connect has no SQLSTATE, and its message is translated.
            newer = secret.instead_of(used)
            if newer is None:
                raise
        return _connect(connect_arguments(newer))

    return log_in


def _connect(arguments: dict[str, Any]) -> Driver:
    driver: Driver = psycopg2.connect(**arguments)
    return driver
