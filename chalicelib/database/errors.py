"""What can go wrong between a request and the database, and what a client may hear of it."""

import logging
from collections.abc import Mapping

import psycopg2

from chalicelib.database.pool import Connection
from chalicelib.database.role_check import UNSAFE_ROLE
from chalicelib.errors import Unavailable

UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
READ_ONLY = "25006"

_log = logging.getLogger("order-api")
# SQLSTATEs after which the same request may succeed: connection, rollback, resources, operator, system.
_TRANSIENT = ("08", "40", "53", "57", "58")
# A pooler lost its session with the server and kept ours: whether the server has committed is not known.
_SESSION_LOST = ("08", "40003", "57P01", "57P02")
# A prepared statement that is not there, one that is there already, and one whose result has changed.
_NOT_AS_PREPARED = ("26000", "42P05", "0A000 RevalidateCachedQuery")
_ON_A_STANDBY = "0A000 get_relation_info"
"""An unlogged table cannot even be looked at there."""
_INTEGRITY = "23"


class Locked(Unavailable):
    """Another transaction held a lock for longer than the role's lock_timeout."""


class ConnectionBroken(Unavailable):
    """The connection was lost after something was sent: what the server did is not known."""


class NoAnswer(Unavailable):
    """The server was silent for as long as a request may wait: what it did is not known."""


class ReadOnly(Unavailable):
    """The server takes no writes: a standby, or a primary that was told so."""


class UnsafeRole(Unavailable):
    """Row-level security does not bind the role of the settings: nothing is served with it."""

    detail = "The service is not set up safely and answers nothing until it is. Its log says what is wrong."
    headers: Mapping[str, str] = {"Retry-After": "60"}


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

    says_no_values = True

    def __init__(self, error: psycopg2.Error) -> None:
        self.sqlstate = error.pgcode or ""
        about_the_schema = self.sqlstate in ("42501", "42703", "42804", "42883", "42P01")
        reason = error.diag.message_primary if about_the_schema else error.diag.constraint_name
        super().__init__(f"SQLSTATE {self.sqlstate or 'unknown'}: {reason or type(error).__name__}")


def of(error: psycopg2.Error, connection: Connection, *, prepared_more: bool) -> Exception:
    """What happened, to be raised. Closes the connection where nobody should use it again.

    `prepared_more`: whether the string was to prepare statements.
    """
    code = _code(error)
    if connection.cut or connection.driver.closed:
        return _no_answer() if connection.cut else unavailable(error, ConnectionBroken)
    if code.startswith(_SESSION_LOST):
        connection.driver.close()
        return unavailable(error, ConnectionBroken)
    is_lost = code in _NOT_AS_PREPARED and bool(connection.prepared)
    # Whether the session has what the string was to prepare is not known. (A constraint is
    # violated and a write refused only behind it, and what was prepared outlives the string's rollback.)
    is_unsure = prepared_more and not code.startswith((_INTEGRITY, READ_ONLY))
    if is_lost or is_unsure or code == UNSAFE_ROLE:
        connection.driver.close()
    if is_lost:
        return StatementLost()
    if code == UNSAFE_ROLE:
        return _unsafe_role(error)
    if kind := {LOCK_NOT_AVAILABLE: Locked, READ_ONLY: ReadOnly}.get(code):
        return unavailable(error, kind)
    return unavailable(error) if _is_transient(error) else Refused(error)


def _no_answer() -> Unavailable:
    """libpq would say that the server has closed the connection. It was the watch (watch.py)."""
    why = "no answer came in time (DB_READ_TIMEOUT, or the host's deadline where that is nearer)"
    return unavailable(TimeoutError(why), NoAnswer)


def _unsafe_role(error: psycopg2.Error) -> UnsafeRole:
    _log.error(
        "refuses to serve: %s. Log in as orders_app, which schema.sql makes; for an experiment set "
        "DB_ALLOW_UNSAFE_ROLE=1",
        error.diag.message_primary,
    )
    return UnsafeRole()


def _code(error: psycopg2.Error) -> str:
    """The SQLSTATE, or one of the names above for what 0A000 alone does not tell apart.

    By where the server raised it: unlike its words, that is not translated.
    """
    code = error.pgcode or ""
    if code == "0A000":
        code = f"{code} {error.diag.source_function}"
    return READ_ONLY if code == _ON_A_STANDBY else code


def _is_transient(error: psycopg2.Error) -> bool:
    if error.pgcode is None:
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return error.pgcode.startswith(_TRANSIENT)


def unavailable(error: Exception, kind: type[Unavailable] = Unavailable) -> Unavailable:
    """Log why, without what a client sent: SQLSTATE and, where there is none, the driver's words."""
    code = getattr(error, "pgcode", None)
    _log.error("database unavailable: %s", f"SQLSTATE {code}" if code else " ".join(str(error).split()))
    return kind()
