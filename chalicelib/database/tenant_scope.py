"""One tenant's access to the database: one string, one round trip."""

from collections.abc import Callable, Sequence
from typing import Any

from psycopg2.extensions import cursor as Cursor

from chalicelib.database.connections import Connections, time_left
from chalicelib.database.errors import ConnectionBroken, NoAnswer, OutcomeUnknown, StatementLost
from chalicelib.database.pool import Connection
from chalicelib.database.statement import Row, RowType, Statement, Step

_SET_TENANT = "select set_tenant(%(tenant_id)s);\n"
_SET_TENANT_AND_TIMEOUT = "select set_tenant(%(tenant_id)s, %(milliseconds)s);\n"


class TenantScope:
    """Sends one verified tenant's statements; row-level security limits each of them to that tenant.

    Each call is one string `select set_tenant(...); ...` under autocommit: one round trip and one
    implicit transaction. Every statement gets `tenant_id` as a value. On a connection that prepares, the
    string has `execute`, and `prepare` in front of it the first time. Raises Unavailable when the database
    does not answer in time, Refused when it rejects a statement.
    """

    def __init__(
        self, connections: Callable[[], Connections], tenant_id: str, deadline: float | None = None
    ) -> None:
        """`connections` is called before anything is sent: a refused request needs no database settings.

        `deadline`: when the host ends the request, by time.monotonic(); None: no deadline.
        """
        if not tenant_id:
            raise ValueError("a scope needs a tenant")
        self.tenant_id = tenant_id
        self._connections = connections
        self._tenant = {"tenant_id": tenant_id}
        self._deadline = deadline

    def read(self, statement: Statement[RowType], **values: Any) -> list[RowType]:
        """The rows of a SELECT, or of a statement that may run twice. Retried once on a broken connection."""
        return statement.typed(self._send([(statement, [values])], repeatable=True))

    def write(self, *steps: Step, repeatable: bool = False) -> list[Row]:
        """All steps or none; the rows of the last. Retried on a broken connection only if `repeatable`."""
        return self._send(steps, repeatable)

    def _send(self, steps: Sequence[Step], repeatable: bool) -> list[Row]:
        # A string that names a lost statement was refused as a whole: it had no effect.
        try:
            return self._send_once(steps, repeatable)
        except StatementLost:
            self._connections().pool.empty()
        try:
            return self._send_once(steps, repeatable)
        except StatementLost:
            self._connections().stop_preparing()
        return self._send_once(steps, repeatable)

    def _send_once(self, steps: Sequence[Step], repeatable: bool) -> list[Row]:
        def build_sql(connection: Connection, cursor: Cursor) -> tuple[bytes, bytes]:
            first, set_tenant = self._set_tenant(connection, cursor)
            return first, set_tenant + self._statements(connection, cursor, steps)

        try:
            return self._connections().send(build_sql, self._deadline)
        except ConnectionBroken:
            if not repeatable:
                raise OutcomeUnknown from None
        except NoAnswer:
            if not repeatable:
                raise OutcomeUnknown from None
            raise
        return self._connections().send(build_sql, self._deadline)

    def _statements(self, connection: Connection, cursor: Cursor, steps: Sequence[Step]) -> bytes:
        """The steps with their values. A statement prepared here counts as prepared from now on."""
        prepared, first, then = connection.prepared, b"", []
        for statement, rows in steps:
            bound = [{**row, **self._tenant} for row in rows]
            if len(bound) > 1 or prepared is None or statement.prepared is None:
                then.append(statement.bind(cursor, bound))
            else:
                if statement.name not in prepared:
                    prepared.add(statement.name)
                    first += statement.prepare
                then.append(cursor.mogrify(statement.execute, bound[0]))
        return first + b";\n".join(then)

    def _set_tenant(self, connection: Connection, cursor: Cursor) -> tuple[bytes, bytes]:
        """Names the tenant, in the order of BuildSql; with a timeout where the deadline is near."""
        seconds = time_left(self._deadline)
        if seconds >= connection.read_timeout:
            return b"", cursor.mogrify(_SET_TENANT, self._tenant)
        # The server's timeout ends first, also during the role check: after its error nothing was committed.
        milliseconds = max(1, int(seconds * 800))
        return cursor.mogrify(_SET_TENANT_AND_TIMEOUT, {**self._tenant, "milliseconds": milliseconds}), b""
