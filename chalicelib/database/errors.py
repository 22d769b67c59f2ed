"""Errors between a request and the database, and what each SQLSTATE means for client, connection and pool."""

from collections.abc import Mapping
from typing import NamedTuple

import psycopg2

from chalicelib.database.pool import Connection
from chalicelib.database.role_check import UNSAFE_ROLE
from chalicelib.errors import Unavailable

UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
READ_ONLY = "25006"

# SQLSTATEs after which the same request may succeed: connection, rollback, resources, operator, system.
_TRANSIENT = ("08", "40", "53", "57", "58")
# A pooler lost its server session and kept the client's connection: the commit may have happened or not.
_SESSION_LOST = ("08", "40003", "57P01", "57P02")
# A prepared statement that does not exist, that exists already, or whose result type has changed.
_NOT_AS_PREPARED = ("26000", "42P05", "0A000 RevalidateCachedQuery")
_ON_A_STANDBY = "0A000 get_relation_info"
"""A standby cannot read an unlogged table."""
_INTEGRITY = "23"
_NO_ANSWER = "no answer came in time (DB_READ_TIMEOUT, or the host's deadline where that is nearer)"
_UNSAFE_ROLE = (
    "refuses to serve: {}. Log in as orders_app, which schema.sql makes; for an experiment set "
    "DB_ALLOW_UNSAFE_ROLE=1"
)


class Locked(Unavailable):
    """Another transaction held a lock for longer than the role's lock_timeout."""


class ConnectionBroken(Unavailable):
    """The connection was lost after something was sent: it is unknown whether the server executed it."""


class NoAnswer(Unavailable):
    """No answer within the read timeout: it is unknown whether the server executed what was sent."""


class ReadOnly(Unavailable):
    """The server takes no writes: a standby, or a primary with default_transaction_read_only."""


class UnsafeRole(Unavailable):
    """Row-level security does not bind the configured role: every request is refused."""

    detail = "The service is not set up safely and answers nothing until it is. Its log says what is wrong."
    headers: Mapping[str, str] = {"Retry-After": "60"}


class OutdatedSchema(Unavailable):
    """The database's schema is older than this release needs. /health/ready alone raises it."""

    headers: Mapping[str, str] = {"Retry-After": "60"}

    def __init__(self, version: object, needed: int) -> None:
        super().__init__(
            f"The database's schema is at version {version}, this release needs {needed}: run make migrate."
        )


class OutcomeUnknown(Unavailable):
    """The connection was lost after a write that must not be repeated was sent."""

    detail = (
        "The database went away before it answered: it is not known whether this took effect. Look before "
        "you send it again; with an Idempotency-Key it can be repeated safely."
    )


class StatementLost(Exception):
    """A session lacks a statement that was prepared on it. The string had no effect."""


class Refused(Exception):
    """The database rejected a statement. The message has no values of the request: it can be logged."""

    is_safe_to_log = True

    def __init__(self, error: psycopg2.Error) -> None:
        self.sqlstate = error.pgcode or ""
        about_the_schema = self.sqlstate in ("42501", "42703", "42804", "42883", "42P01")
        reason = error.diag.message_primary if about_the_schema else error.diag.constraint_name
        super().__init__(f"SQLSTATE {self.sqlstate or 'unknown'}: {reason or type(error).__name__}")


_KINDS: Mapping[str, type[Unavailable]] = {LOCK_NOT_AVAILABLE: Locked, READ_ONLY: ReadOnly}


class Failure(NamedTuple):
    """What follows from an error of the driver; connections.py acts on it."""

    error: Exception
    """To be raised."""
    log: str = ""
    """The log line, without values of the request; nothing is logged when empty."""
    closes_connection: bool = False
    """Whether the connection's session is gone, or in an unknown state."""
    empties_pool: bool = False
    """Whether the other connections lead to the same broken server."""


def classify(
    error: psycopg2.Error, connection: Connection, *, prepared_more: bool, waited_in_full: bool
) -> Failure:
    """What an error means. No side effects.

    `prepared_more`: whether the string contained a `prepare`. `waited_in_full`: whether the answer had
    DB_READ_TIMEOUT's seconds, not only those until the host's deadline.
    """
    if connection.timed_out:
        # libpq reports that the server closed the connection, but read_timeout.py did.
        return unavailable(TimeoutError(_NO_ANSWER), NoAnswer, empties_pool=waited_in_full)
    code = _code(error)
    if connection.driver.closed or code.startswith(_SESSION_LOST):
        return unavailable(error, ConnectionBroken, closes_connection=True)
    if code in _NOT_AS_PREPARED and connection.prepared:
        return Failure(StatementLost(), closes_connection=True)
    if code == UNSAFE_ROLE:
        return Failure(UnsafeRole(), _UNSAFE_ROLE.format(error.diag.message_primary), closes_connection=True)
    # After other errors it is unknown whether the session has prepared the string's statements. (Constraint
    # violations and refused writes happen after it, and a prepared statement outlives the rollback.)
    closes = prepared_more and not code.startswith((_INTEGRITY, READ_ONLY))
    if code in _KINDS or _is_transient(error):
        kind = _KINDS.get(code, Unavailable)
        # The idle connections lead to the same server, which is no longer the primary. (Not after a new
        # connection: another one would lead there too, and every request would reconnect in vain.)
        was_demoted = kind is ReadOnly and not connection.is_new()
        return unavailable(error, kind, closes_connection=closes, empties_pool=was_demoted)
    return Failure(Refused(error), closes_connection=closes)


def unavailable(
    error: Exception,
    kind: type[Unavailable] = Unavailable,
    *,
    closes_connection: bool = False,
    empties_pool: bool = False,
) -> Failure:
    """A 503. Its log line has the SQLSTATE or, without one, the driver's message; no value of a client."""
    code = getattr(error, "pgcode", None)
    reason = f"SQLSTATE {code}" if code else " ".join(str(error).split())
    return Failure(kind(), f"database unavailable: {reason}", closes_connection, empties_pool)


def _code(error: psycopg2.Error) -> str:
    """The SQLSTATE; for 0A000, which has several causes, one of the names above.

    The server's source function distinguishes them, because the message is translated.
    """
    code = error.pgcode or ""
    if code == "0A000":
        code = f"{code} {error.diag.source_function}"
    return READ_ONLY if code == _ON_A_STANDBY else code


def _is_transient(error: psycopg2.Error) -> bool:
    if error.pgcode is None:
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return error.pgcode.startswith(_TRANSIENT)
